"""Which state of its input files a folder was made of: `_input.json`, a stamp for each piece that has one.

The rows of a piece are where the file had them. A file that was written anew (mended, or longer now) may have them
elsewhere, so parts of both must not lie side by side: those of before have to go first. A piece without parts is read
as it is.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.embedding import folder as folders
from runtime.embedding.parts import Part, key_of
from runtime.embedding.tile import Piece
from runtime.errors import OutputError

_SHOWN = 3


def note(folder: Path, pieces: Iterable[Piece]) -> None:
    """Write down the stamps of pieces, in a folder that is held."""
    _write(folder, {piece.name: piece.stamp for piece in pieces if piece.stamp is not None})


def check(folder: Path, pieces: Iterable[Piece]) -> None:
    """Raise if parts are of another state of their piece than there is now; else note how the others are now.

    Raises:
        OutputError: The message names the parts to remove; or the notes cannot be read.
    """
    before = _read(folder / folders.INPUT)
    changed = {piece: before.get(piece.name) for piece in pieces if before.get(piece.name) != piece.stamp}
    if not changed:
        return
    parts = _by_key(folders.parts(folder))
    if old := [(piece, stamp, parts[key_of(piece)]) for piece, stamp in changed.items() if key_of(piece) in parts]:
        raise OutputError(_told(folder, old))
    _write(folder, before | {piece.name: piece.stamp for piece in changed if piece.stamp is not None})


def _told(folder: Path, old: list[tuple[Piece, str | None, list[Part]]]) -> str:
    named = "; ".join(
        f"{piece.name!r} ({stamp}, now {piece.stamp}): remove {_parts(parts)}" for piece, stamp, parts in old[:_SHOWN]
    )
    more = f"; and {len(old) - _SHOWN} more" if len(old) > _SHOWN else ""
    return (
        f"{folder} holds rows of files that have changed since: {named}{more}. Then run the same "
        "command with --resume: these files are embedded anew, and no other."
    )


def _parts(parts: list[Part]) -> str:
    names = [part.name for part in parts]
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"part-{parts[0].key}-{'?' * 10}-{'?' * 10}*.parquet ({len(names)} parts)"


def _by_key(parts: Iterable[Part]) -> dict[str, list[Part]]:
    found = defaultdict(list)
    for part in parts:
        found[part.key].append(part)
    return found


def _write(folder: Path, stamps: Mapping[str, str | None]) -> None:
    text = json.dumps(stamps, indent=0, sort_keys=True, ensure_ascii=False) + "\n"
    with folders.output_errors(folder):
        folders.publish(folder / folders.INPUT, lambda file: file.write(text.encode()))


def _read(path: Path) -> dict[str, str | None]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"{path} cannot be read: {error}. Without it nobody knows which rows are of files that have changed: begin "
            "again with --overwrite, or choose another folder."
        ) from error
