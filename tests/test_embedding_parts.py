"""Which tiles are published and which are missing, by file names alone."""

import itertools

import pytest

from runtime.embedding.parts import Part, Range, key_of, missing, split, total
from runtime.embedding.tile import Piece
from runtime.errors import OutputError

A, B = Piece("a", 100), Piece("b.tar", None)


def part(piece: Piece, start: int, stop: int, last: bool = False) -> Part:
    return Part(key_of(piece), start, stop, last)


@pytest.mark.parametrize(
    ("pieces", "parts", "left"),
    [
        ([], [], []),
        ([A], [], [Range(A, 0, 100)]),
        ([A], [part(A, 0, 100, True)], []),
        ([A], [part(A, 0, 32)], [Range(A, 32, 100)]),
        ([A], [part(A, 32, 64), part(A, 96, 100, True)], [Range(A, 0, 32), Range(A, 64, 96)]),
        ([A, B], [part(A, 0, 100, True)], [Range(B, 0, None)]),
        ([B], [part(B, 0, 32), part(B, 32, 64)], [Range(B, 64, None)]),
        ([B], [part(B, 0, 32), part(B, 32, 40, True)], []),
        ([B], [part(B, 32, 40, True)], [Range(B, 0, 32)]),
        ([B], [part(B, 0, 0, True)], []),
        ([Piece("empty", 0)], [], []),
        ([B, A], [part(Piece("another", 5), 0, 5, True)], [Range(B, 0, None), Range(A, 0, 100)]),
    ],
)
def test_what_no_part_holds_is_missing_in_the_order_of_the_input(
    pieces: list[Piece], parts: list[Part], left: list[Range]
) -> None:
    for order in itertools.permutations(parts):
        assert missing(pieces, order) == left


def test_two_parts_with_the_same_tile_are_refused() -> None:
    with pytest.raises(
        OutputError, match=r"part-a-0000000016-0000000064\.parquet holds tiles that another part of 'a'"
    ):
        missing([A], [part(A, 0, 32), part(A, 16, 64)])


@pytest.mark.parametrize(
    "name", ["a", "a-1", "part-a-0000000000-0000000001", "slides/one two.svs", "%", "ü" * 100, "x" * 300, "..", "a=b"]
)
def test_a_part_is_known_by_its_file_name(name: str) -> None:
    key = key_of(Piece(name, 9))
    for one in (Part(key, 0, 7, False), Part(key, 7, 12_345_678_901, True)):
        assert Part.parse(one.name) == one
        assert "/" not in one.name
        assert len(one.name.encode()) < 240  # a temporary name is longer, and no file name has more than 255 bytes


def test_no_two_pieces_share_a_key() -> None:
    names = ["a/b", "a%2Fb", "a b", "a+b", "x" * 300, "x" * 301, "x" * 149 + "é", "x" * 149 + "è"]
    assert len({key_of(Piece(name, 1)) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["part-a-0-1.parquet", "a.parquet", "part-a-0000000000-0000000001.parquet.tmp", ""])
def test_other_files_are_no_parts(name: str) -> None:
    assert Part.parse(name) is None


def test_parts_sorted_by_name_are_in_the_order_of_the_tiles() -> None:
    parts = [part(A, start, start + 5) for start in (0, 5, 95, 100, 1000, 99_995, 1_000_000)]
    assert sorted(parts, key=lambda one: one.name) == parts


def test_tiles_to_do_are_counted_where_that_is_known() -> None:
    assert total([Range(A, 32, 64), Range(A, 96, 100)]) == 36
    assert total([Range(A, 32, 64), Range(B, 64)]) is None
    assert total([]) == 0


def test_ranges_are_cut_for_several_workers() -> None:
    assert split([Range(A, 32, 100), Range(B, 7)], 32) == [
        Range(A, 32, 64),
        Range(A, 64, 96),
        Range(A, 96, 100),
        Range(B, 7),
    ]
    assert [one.to_the_end for one in split([Range(A, 32, 100)], 40)] == [False, True]
