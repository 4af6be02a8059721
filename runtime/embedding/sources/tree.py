"""The files below a folder, all or those that a pattern matches; one way to look, so that both see the same."""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

# What a folder holds that `runtime.embed` writes to: it may lie below its own input.
_EMBEDDINGS = "_embed.json"
ALL = "**"


def files(root: Path, parts: Sequence[str] = (ALL,)) -> Iterator[str]:
    """Yield the files below `root` that match, relative to it, in no order; `**` may come more than once.

    Links are followed, but not in circles. Those to nowhere are files, so that they are reported as unreadable. Names
    with a leading dot are not looked at unless the pattern has it, nor are folders of embeddings.

    Args:
        root: Where to look.
        parts: Of the pattern, one for each level: `**` for any number of them, `*`, `?` and `[...]` within one.

    Raises:
        OSError: A folder cannot be listed.
    """
    # Each with the real paths of all folders above it: a link to one of those would never end.
    todo: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [("", (os.path.realpath(root),), tuple(parts))]
    while todo:
        prefix, above, (first, *rest) = todo.pop()
        if first == ALL and rest:
            todo.append((prefix, above, tuple(rest)))  # `**` may be no level
        deeper = (ALL, *rest) if first == ALL else tuple(rest)
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if not matches(entry.name, first):
                    continue
                if not entry.is_dir():
                    if not rest and _is_file(entry):
                        yield prefix + entry.name
                elif deeper and (real := _below(entry, above)):
                    todo.append((f"{prefix}{entry.name}/", (*above, real), deeper))


def matches(name: str, pattern: str) -> bool:
    """Return whether one level of a pattern matches a name; a leading dot must be in both."""
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return pattern == ALL or name == pattern or fnmatchcase(name, pattern)


def has_magic(text: str) -> bool:
    """Return whether a text is a pattern."""
    return re.search(r"[*?\[]", text) is not None


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() or entry.is_symlink()


def _below(entry: os.DirEntry[str], above: tuple[str, ...]) -> str | None:
    """Return the real path of a folder; `None` of one that is not to be looked at."""
    real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
    return None if real in above or os.path.lexists(f"{real}/{_EMBEDDINGS}") else real
