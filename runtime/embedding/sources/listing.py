"""The files at a place, sorted: a folder with all below it, a glob, a range of names. A million take 50 MB."""

import glob
import hashlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from runtime.embedding.sources.kinds import Found, Kind, choose, kind_of, suffix_of
from runtime.errors import InputError

Entry = tuple[str, int]
"""A name relative to the root, with forward slashes, and the file's size in bytes."""

_CHUNK = 65536
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Listing:
    """Files of one kind below `root`, in the order of their names' bytes."""

    root: Path
    names: pa.LargeStringArray
    sizes: pa.Int64Array

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> list[Path]:
        """Return all paths; for lists that are known to be short."""
        return [self.root / name for name in self.names.to_pylist()]

    def digest(self) -> str:
        """Return a SHA-256 of names and sizes."""
        state = hashlib.sha256()
        for array in (self.names, self.sizes):
            for buffer in array.buffers()[1:]:
                state.update(buffer)
        return state.hexdigest()


def find_files(path: str | Path, *, slides: bool) -> tuple[Kind, Listing]:
    """Return what lies at `path`, and its files; TIFF files are slides where `slides`.

    Raises:
        InputError: Nothing lies there, nothing that is understood, or several kinds; names that are not UTF-8.
    """
    try:
        root, entries = _entries(str(path))
        kinds, others = _collect(entries, slides)
    except OSError as error:
        raise InputError(f"{path} cannot be listed: {error}") from error
    kind = choose(Found(str(path), {kind: sum(map(len, chunks)) for kind, chunks in kinds.items()}, others))
    names, sizes = _sorted(kinds.pop(kind))
    pa.default_memory_pool().release_unused()  # sorting took twice what is kept
    # Absolute: a worker may read from another working directory.
    return kind, Listing(root.absolute(), names, sizes)


def _sorted(batches: list[pa.RecordBatch]) -> tuple[pa.Array, pa.Array]:
    table = pa.Table.from_batches(batches).combine_chunks()
    batches.clear()  # what is not held any more need not be held twice
    table = table.take(pc.sort_indices(table, sort_keys=[("name", "ascending")]))
    names, sizes = (pa.concat_arrays(column.chunks) for column in table.columns)
    again = pc.equal(names[1:], names[:-1])  # `**/**` matches a file more than once
    if pc.any(again).as_py():
        once = pa.concat_arrays([pa.array([True]), pc.invert(again)])
        names, sizes = names.filter(once), sizes.filter(once)
    return names, sizes


def _entries(path: str) -> tuple[Path, Iterator[Entry]]:
    here = Path(path)
    if here.is_dir():
        return here, _walk(here)
    if here.exists():
        return here.parent, iter([(here.name, here.stat().st_size)])
    if _RANGE.search(path):
        return _range(path)
    if _MAGIC.search(path):
        return _glob(path)
    raise InputError(f"There is no {path}{_near(here)}. Name a file, a folder, or a glob such as 'tiles/**/*.png'.")


def _near(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    names = sorted(itertools.islice((entry.name for entry in os.scandir(folder)), 1000))
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"; {folder} holds {shown or 'nothing'}"


def _walk(root: Path) -> Iterator[Entry]:
    """Yield every file below `root`, links followed, in no order; names with a leading dot are not looked at."""
    # Each with the real paths of all folders above it: a link to one of those would never end.
    folders: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while folders:
        prefix, above = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                    if real not in above:
                        folders.append((f"{name}/", (*above, real)))
                elif entry.is_file():
                    yield name, entry.stat().st_size
                elif entry.is_symlink():  # to nowhere: listed, so that it is reported as unreadable
                    yield name, 0


def _glob(pattern: str) -> tuple[Path, Iterator[Entry]]:
    fixed = itertools.takewhile(lambda part: not _MAGIC.search(part), Path(pattern).parts)
    root = Path(*fixed)
    # Unlike Path.glob, it follows links to folders and leaves out names with a leading dot, as _walk does.
    matches = glob.iglob(str(Path(pattern).relative_to(root)), root_dir=root, recursive=True)  # noqa: PTH207
    return root, ((Path(name).as_posix(), (root / name).stat().st_size) for name in matches if (root / name).is_file())


def _range(pattern: str) -> tuple[Path, Iterator[Entry]]:
    paths = [Path(path) for path in expand_range(pattern)]
    if not paths:
        raise InputError(f"{pattern} names no file: a range goes from the smaller number to the larger.")
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{pattern} names {len(paths)} files, and {len(missing)} of them do not exist: "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}."
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, ((path.relative_to(root).as_posix(), path.stat().st_size) for path in paths)


def expand_range(pattern: str) -> list[str]:
    """Return the names that `shard-{000..010}.tar` stands for; of several ranges, every combination."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    width = len(first) if first.startswith("0") else 0
    numbers = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    return [f"{pattern[: match.start()]}{n}{rest}" for n in numbers for rest in expand_range(pattern[match.end() :])]


def _collect(entries: Iterator[Entry], slides: bool) -> tuple[dict[Kind, list[pa.RecordBatch]], Counter[str]]:
    found: dict[Kind, list[pa.RecordBatch]] = defaultdict(list)
    others: Counter[str] = Counter()
    while chunk := list(itertools.islice(entries, _CHUNK)):
        by_kind: dict[Kind, list[Entry]] = defaultdict(list)
        for entry in chunk:
            if kind := kind_of(entry[0], slides):
                by_kind[kind].append(entry)
            else:
                others[suffix_of(entry[0])] += 1
        for kind, listed in by_kind.items():
            found[kind].append(_batch(listed))
    return found, others


def _batch(entries: list[Entry]) -> pa.RecordBatch:
    names, sizes = zip(*entries, strict=True)
    try:
        columns = [pa.array(names, pa.large_string()), pa.array(sizes, pa.int64())]
    except UnicodeEncodeError as error:
        raise InputError(
            f"The file name {os.fsencode(error.object)!r} is not UTF-8, and ids are. Rename it."
        ) from error
    return pa.record_batch(columns, names=["name", "size"])
