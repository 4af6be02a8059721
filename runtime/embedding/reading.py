"""From a source to groups of undecoded tiles: in order, never across the end of a range."""

from collections.abc import Iterable, Iterator
from itertools import islice

from runtime.embedding.batch import Group
from runtime.embedding.parts import Range
from runtime.embedding.sources import Source
from runtime.embedding.tile import Tile
from runtime.errors import InputError


def groups(source: Source, ranges: Iterable[Range], size: int) -> Iterator[Group]:
    """Yield the tiles of the ranges, `size` at a time, the last of a range being what is left.

    A range to the end of a piece in which nothing is left gives one empty group, which says so.

    Raises:
        InputError: The input cannot be read on, or has fewer tiles than it said.
    """
    for one in ranges:
        yield from _of_range(source, one, size)


def _of_range(source: Source, one: Range, size: int) -> Iterator[Group]:
    tiles, start = _read(source, one), one.start
    group = tuple(islice(tiles, size))
    while True:
        # One group ahead: only then is it known whether this one is the last.
        following = tuple(islice(tiles, size))
        yield Group(one, start, group, ends=not following)
        if not following:
            break
        start, group = start + len(group), following
    if one.stop is not None and start + len(group) != one.stop:
        raise InputError(
            f"{one.piece.name!r} was to hold tiles {one.start} to {one.stop}, and ended after {start + len(group)}: it "
            "changed while it was read. Begin again with --overwrite."
        )


def _read(source: Source, one: Range) -> Iterator[Tile]:
    count = None if one.stop is None else one.stop - one.start
    try:
        yield from islice(source.tiles(one.piece, one.start), count)
    except OSError as error:
        raise InputError(
            f"{one.piece.name!r} cannot be read on: {error}. What was published stays: mend it and run the same "
            "command with --resume."
        ) from error
