"""The files at a place, sorted: a folder with all below it, a glob, a range of names. A million take 50 MB."""

import glob
import hashlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from runtime.embedding.sources.kinds import Found, Kind, choose, kind_of, suffix_of
from runtime.embedding.sources.tree import files, has_magic
from runtime.errors import InputError

_CHUNK = 65536
# What follows a dot may be a number: so many are told apart, others are one.
_SUFFIXES, _REST = 100, ".*"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Listing:
    """Files of one kind below `root`, in the order of their names' bytes.

    Attributes:
        root: The folder that the names are relative to.
        names: The files.
        ignored: How many others lay beside them, by suffix: what a wrong name hides must not vanish.
    """

    root: Path
    names: pa.LargeStringArray
    ignored: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def sizes(self) -> tuple[str, ...]:
        """Return the size of each file in words, which tells that it was written anew; for lists known to be short.

        Raises:
            InputError: One is gone.
        """
        try:
            return tuple(f"{(self.root / name).stat().st_size:,} bytes" for name in self.names.to_pylist())
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error

    def digest(self) -> str:
        """Return a SHA-256 of the names."""
        state = hashlib.sha256()
        for buffer in self.names.buffers()[1:]:
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
    names = _sorted(kinds.pop(kind))
    pa.default_memory_pool().release_unused()  # sorting took twice what is kept
    # Absolute: a worker may read from another working directory.
    return kind, Listing(root.absolute(), names, dict(others))


def _sorted(chunks: list[pa.LargeStringArray]) -> pa.LargeStringArray:
    names = pa.concat_arrays(chunks)
    chunks.clear()  # what is not held any more need not be held twice
    names = names.take(pc.sort_indices(names))
    again = pc.equal(names[1:], names[:-1])  # `**/**` matches a file more than once
    if pc.any(again).as_py():
        names = names.filter(pa.concat_arrays([pa.array([True]), pc.invert(again)]))
    return names


def _entries(path: str) -> tuple[Path, Iterator[str]]:
    here = Path(path)
    if here.is_dir():
        return here, files(here)
    if here.exists():
        return here.parent, iter([here.name])
    if _RANGE.search(path):
        return _range(path)
    if has_magic(path):
        return _glob(path)
    raise InputError(f"There is no {path}{_near(here)}. Name a file, a folder, or a glob such as 'tiles/**/*.png'.")


def _near(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    names = sorted(itertools.islice((entry.name for entry in os.scandir(folder)), 1000))
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"; {folder} holds {shown or 'nothing'}"


def _glob(pattern: str) -> tuple[Path, Iterator[str]]:
    parts = Path(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not has_magic(part), parts))
    root = Path(*fixed)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}{_near(root)}. {pattern} is looked for in it.")
    found = files(root, parts[len(fixed) :])
    first = next(found, None)
    if first is None:
        raise InputError(_no_match(pattern, root))
    return root, itertools.chain([first], found)


def _no_match(pattern: str, root: Path) -> str:
    """Return what to say of a pattern that matches no file: folders that it matches, or other files near them."""
    if folders := glob.glob(pattern, recursive=True):  # noqa: PTH207  (Path.glob does not follow links)
        return (
            f"{pattern} matches only folders, such as {folders[0]}. Name the folder, or the files in all of them with "
            f"'{pattern.rstrip('/')}/**'."
        )
    here = Counter(suffix_of(name) for name in itertools.islice(files(root), 1000))
    understood = [suffix for suffix, _ in here.most_common() if kind_of(suffix, slides=True)]
    known = (
        f" Files there end in {', '.join(suffix or 'no suffix' for suffix, _ in here.most_common(5))}." if here else ""
    )
    meant = f" Perhaps '{pattern.removesuffix(suffix_of(pattern))}{understood[0]}' is meant." if understood else ""
    return f"{pattern} matches no file{_near(root / '*')}.{known}{meant}"


def _range(pattern: str) -> tuple[Path, Iterator[str]]:
    paths = [Path(path) for path in expand_range(pattern)]
    if not paths:
        raise InputError(f"{pattern} names no file: a range goes from the smaller number to the larger.")
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{pattern} names {len(paths)} files, and {len(missing)} of them do not exist: "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}."
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, (path.relative_to(root).as_posix() for path in paths)


def expand_range(pattern: str) -> list[str]:
    """Return the names that `shard-{000..010}.tar` stands for; of several ranges, every combination."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    width = len(first) if first.startswith("0") else 0
    numbers = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    return [f"{pattern[: match.start()]}{n}{rest}" for n in numbers for rest in expand_range(pattern[match.end() :])]


def _collect(names: Iterator[str], slides: bool) -> tuple[dict[Kind, list[pa.LargeStringArray]], Counter[str]]:
    found: dict[Kind, list[pa.LargeStringArray]] = defaultdict(list)
    others: Counter[str] = Counter()
    while chunk := list(itertools.islice(names, _CHUNK)):
        by_kind: dict[Kind, list[str]] = defaultdict(list)
        for name in chunk:
            if kind := kind_of(name, slides):
                by_kind[kind].append(name)
            else:
                suffix = suffix_of(name)
                others[suffix if suffix in others or len(others) < _SUFFIXES else _REST] += 1
        for kind, listed in by_kind.items():
            found[kind].append(_array(listed))
    return found, others


def _array(names: list[str]) -> pa.LargeStringArray:
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError as error:
        raise InputError(
            f"The file name {os.fsencode(error.object)!r} is not UTF-8, and ids are. Rename it."
        ) from error
