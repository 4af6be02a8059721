"""Which tiles the files of an output folder hold, and which are still to be done. Pure: names and numbers only."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from runtime.embedding.tile import Piece
from runtime.errors import OutputError

_NAME = re.compile(r"part-(?P<key>.+)-(?P<start>\d{10,})-(?P<stop>\d{10,})(?P<last>-end)?\.parquet")
# Of a quoted piece name; with the numbers it must stay under the 255 bytes that file systems allow.
_LONGEST_KEY = 150


@dataclass(frozen=True)
class Range:
    """Tiles `start` to `stop` of a piece; `stop` is `None` for all that come."""

    piece: Piece
    start: int = 0
    stop: int | None = None

    @property
    def to_the_end(self) -> bool:
        """Whether no tile of the piece comes after it."""
        return self.stop is None or self.stop == self.piece.count


@dataclass(frozen=True, order=True)
class Part:
    """One published file: tiles `start` to `stop` of the piece whose quoted name is `key`.

    `last` tells that the piece has no further tiles: of a tar, only reading it to its end has told that.
    """

    key: str
    start: int
    stop: int
    last: bool

    @property
    def name(self) -> str:
        """Its file name; sorted by name, the parts of a piece are in the order of its tiles."""
        return f"part-{self.key}-{self.start:010}-{self.stop:010}{'-end' if self.last else ''}.parquet"

    @classmethod
    def parse(cls, name: str) -> "Part | None":
        """Return the part that a file of this name is; `None` for any other file."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["key"], int(match["start"]), int(match["stop"]), match["last"] is not None)


def key_of(piece: Piece) -> str:
    """Return a piece's name as it appears in file names: quoted, and cut where it is long (a hash keeps it unique)."""
    quoted = quote(piece.name, safe="")
    if len(quoted) <= _LONGEST_KEY:
        return quoted
    return f"{quoted[:_LONGEST_KEY]}~{hashlib.sha256(piece.name.encode()).hexdigest()[:16]}"


def missing(pieces: Iterable[Piece], parts: Iterable[Part]) -> list[Range]:
    """Return the ranges of tiles that no part holds, in the order of the pieces.

    Raises:
        OutputError: Two parts hold the same tile: something else than this program wrote there.
    """
    known: dict[str, list[Part]] = {}
    for part in sorted(parts):
        known.setdefault(part.key, []).append(part)
    return [gap for piece in pieces for gap in _gaps(piece, known.get(key_of(piece), ()))]


def _gaps(piece: Piece, parts: Sequence[Part]) -> list[Range]:
    gaps, reached = [], 0
    for part in parts:
        if part.start < reached:
            raise OutputError(
                f"{part.name} holds tiles that another part of {piece.name!r} holds, too. Remove one of the two, or "
                "begin again with --overwrite."
            )
        if part.start > reached:
            gaps.append(Range(piece, reached, part.start))
        reached = part.stop
    ended = bool(parts) and parts[-1].last
    if not ended and reached != piece.count:
        gaps.append(Range(piece, reached, piece.count))
    return gaps


def total(ranges: Iterable[Range]) -> int | None:
    """Return how many tiles the ranges hold; `None` when only reading tells."""
    stops = [(r.start, r.stop) for r in ranges]
    if any(stop is None for _, stop in stops):
        return None
    return sum(stop - start for start, stop in stops if stop is not None)


def split(ranges: Iterable[Range], tiles: int) -> list[Range]:
    """Return the ranges cut into pieces of at most `tiles` tiles, for several workers; those of unknown end stay."""
    return [part for one in ranges for part in _split(one, tiles)]


def _split(one: Range, tiles: int) -> list[Range]:
    if one.stop is None:
        return [one]
    starts = range(one.start, one.stop, tiles)
    return [Range(one.piece, start, min(start + tiles, one.stop)) for start in starts]
