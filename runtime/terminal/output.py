"""Writing to the terminal: the only place of `runtime` that prints."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def say(text: str = "") -> None:
    """Print a line of the result."""
    print(text)


def say_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    print(json.dumps(data, sort_keys=True))


def complain(text: object) -> None:
    """Print an error where errors belong."""
    print(f"error: {text}", file=sys.stderr)


def remark(text: str) -> None:
    """Print beside the result what is not part of it."""
    print(text, file=sys.stderr)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns as wide as their widest cell; the last column is not filled up."""
    cells = [tuple(headers), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def size(count: int) -> str:
    """Return bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} B"
