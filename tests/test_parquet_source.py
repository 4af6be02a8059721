"""Images and paths in Parquet files: columns, ids, row groups, and what can be wrong with them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runtime.embedding.decode import decode
from runtime.embedding.sources import Source, open_source
from runtime.embedding.sources.columns import Columns, choose_columns
from runtime.embedding.sources.ids import find_duplicates
from runtime.embedding.tile import Tile
from runtime.errors import InputError, UnreadableImageError

BINARY, TEXT, NUMBER = pa.binary(), pa.string(), pa.int64()
STRUCT = pa.struct({"bytes": BINARY, "path": TEXT})


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def numbered(path: Path, count: int, group: int, first: int = 0) -> Path:
    """Images whose grey is their number, ids `tile-<number>`."""
    numbers = range(first, first + count)
    columns = {"id": [f"tile-{k}" for k in numbers], "image": [encoded(k % 256) for k in numbers], "label": [0] * count}
    return write(path, columns, row_group_size=group)


def tiles(source: Source) -> list[Tile]:
    return [tile for piece in source.pieces() for tile in source.tiles(piece)]


def greys(source: Source) -> list[int]:
    return [int(decode(tile)[0, 0, 0]) for tile in tiles(source)]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "asked", "expected"),
    [
        ({"image": BINARY}, {}, Columns("image", "bytes", None)),
        ({"image": STRUCT, "id": TEXT}, {}, Columns("image", "struct", "id")),
        ({"Image": pa.large_binary(), "ID": NUMBER}, {}, Columns("Image", "bytes", "ID")),
        ({"anything": BINARY, "label": NUMBER}, {}, Columns("anything", "bytes", None)),
        ({"thumbnail": BINARY, "bytes": BINARY}, {}, Columns("bytes", "bytes", None)),
        ({"path": TEXT, "image": BINARY}, {}, Columns("image", "bytes", None)),
        ({"file_name": TEXT, "label": TEXT}, {}, Columns("file_name", "path", None)),
        ({"path": pa.dictionary(pa.int32(), TEXT), "tile_id": NUMBER}, {}, Columns("path", "path", "tile_id")),
        ({"image": TEXT, "key": TEXT}, {}, Columns("image", "path", "key")),
        ({"image": pa.struct({"bytes": BINARY}), "uid": pa.float64()}, {}, Columns("image", "struct", None)),
        ({"image": BINARY, "id": pa.float64(), "tile_id": TEXT}, {}, Columns("image", "bytes", "tile_id")),
        ({"image": BINARY, "id": pa.float64()}, {"ids": "none"}, Columns("image", "bytes", None)),
        ({"a": BINARY, "b": BINARY, "id": TEXT}, {"image": "b"}, Columns("b", "bytes", "id")),
        ({"image": BINARY, "where": TEXT}, {"image": "where"}, Columns("where", "path", None)),
        ({"image": BINARY, "id": TEXT, "name": TEXT}, {"ids": "name"}, Columns("image", "bytes", "name")),
        ({"image": BINARY, "id": TEXT}, {"ids": "none"}, Columns("image", "bytes", None)),
        ({"path": TEXT}, {"ids": "path"}, Columns("path", "path", "path")),
    ],
)
def test_names_and_types_point_to_the_columns(
    fields: dict[str, pa.DataType], asked: dict[str, str], expected: Columns
) -> None:
    assert choose_columns(pa.schema(fields), "f.parquet", **asked) == expected


@pytest.mark.parametrize(
    ("fields", "asked", "told"),
    [
        ({"a": BINARY, "b": BINARY}, {}, "Which column of f.parquet holds the images?"),
        ({"label": NUMBER}, {}, "Its columns: label (int64)."),
        ({"label": TEXT}, {}, "--image-column"),
        ({"image": BINARY}, {"image": "img"}, "The column 'img' of f.parquet does not exist"),
        ({"image": pa.list_(pa.uint8())}, {"image": "image"}, "is of type list<"),
        ({"image": pa.struct({"path": TEXT})}, {"image": "image"}, "is of type struct<"),
        (
            {"image": BINARY, "ID": pa.float64()},
            {},
            "The column 'ID' of f.parquet is of type double. Ids are strings",
        ),
        ({"image": BINARY}, {"ids": "id"}, "The column 'id' of f.parquet does not exist"),
        ({"image": BINARY, "id": pa.float64()}, {"ids": "id"}, "is of type double. Ids are strings or integers"),
    ],
)
def test_columns_that_cannot_be_had_are_told_with_those_that_can(
    fields: dict[str, pa.DataType], asked: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError) as caught:
        choose_columns(pa.schema(fields), "f.parquet", **asked)
    assert told in str(caught.value)
    assert next(iter(fields)) in str(caught.value)


def test_images_and_ids_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    source = open_source(numbered(tmp_path / "a.parquet", 200, group=70))

    assert [(piece.name, piece.count) for piece in source.pieces()] == [("a.parquet", 200)]
    assert [tile.id for tile in tiles(source)] == [f"tile-{k}" for k in range(200)]
    assert greys(source) == list(range(200))


def test_a_dataset_is_read_file_by_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    numbered(tmp_path / "year=2" / "b.parquet", 3, group=2, first=5)
    numbered(tmp_path / "year=1" / "a.parquet", 5, group=2)
    (tmp_path / "_SUCCESS").touch()

    source = open_source(tmp_path)

    assert [(p.name, p.count) for p in source.pieces()] == [("year=1/a.parquet", 5), ("year=2/b.parquet", 3)]
    assert greys(source) == list(range(8))


def test_rows_without_an_id_are_numbered_by_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", {"image": [b"x", b"y"]})

    expected = ["a.parquet/0", "a.parquet/1", "b.parquet/0", "b.parquet/1"]
    assert [tile.id for tile in tiles(open_source(tmp_path))] == expected


def test_integer_ids_become_text(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.parquet", {"image": [b"x", b"y"], "id": [7, 70]}))

    assert [tile.id for tile in tiles(source)] == ["7", "70"]


@pytest.mark.parametrize("start", [0, 1, 63, 64, 69, 70, 71, 139, 140, 199, 200])
def test_reading_starts_at_any_row(tmp_path: Path, start: int) -> None:
    source = open_source(numbered(tmp_path / "a.parquet", 200, group=70))

    assert [tile.id for tile in source.tiles(source.pieces()[0], start)] == [f"tile-{k}" for k in range(start, 200)]


def test_numbers_of_rows_are_those_of_the_file_wherever_reading_starts(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.parquet", {"image": [b"x"] * 100}, row_group_size=30))

    assert [tile.id for tile in source.tiles(source.pieces()[0], 95)] == [f"a.parquet/{k}" for k in range(95, 100)]


def test_row_groups_before_the_start_are_not_read(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.parquet", 100, group=50)
    source = open_source(path, id_column="none")
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert column.path_in_schema == "image"
    with path.open("r+b") as file:  # damaged, as whoever reads it will notice
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 64)

    assert next(source.tiles(source.pieces()[0], 50)).id == "a.parquet/50"
    found = list(source.tiles(source.pieces()[0], 48))
    assert [tile.id for tile in found] == [f"a.parquet/{k}" for k in range(48, 100)]
    assert str(found[1].image).startswith("its row group is damaged: ")
    assert int(decode(found[2])[0, 0, 0]) == 50


def test_a_file_cut_short_is_a_tile_and_the_others_are_read(tmp_path: Path) -> None:
    numbered(tmp_path / "b.parquet", 3, group=2)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])

    found = tiles(open_source(tmp_path))

    assert [tile.id for tile in found] == ["a.parquet", "tile-0", "tile-1", "tile-2"]
    assert str(found[0].image).startswith("is no readable Parquet file: ")


def test_hugging_face_structs_give_their_bytes_or_else_their_path(tmp_path: Path) -> None:
    (tmp_path / "data" / "far").mkdir(parents=True)
    (tmp_path / "data" / "far" / "b.png").write_bytes(encoded(20))
    rows = [{"bytes": encoded(10), "path": "a.png"}, {"bytes": None, "path": "far/b.png"}]
    write(tmp_path / "data" / "x.parquet", {"image": pa.array(rows, STRUCT)})

    assert greys(open_source(tmp_path / "data" / "x.parquet")) == [10, 20]


def test_paths_are_relative_to_the_folder_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for grey, name in ((1, "lists/images/a.png"), (2, "b.png"), (3, "c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(grey))
    write(tmp_path / "lists/x.parquet", {"path": ["images/a.png", "../b.png", str(tmp_path / "c.png")]})
    monkeypatch.chdir(tmp_path / "lists" / "images")

    assert greys(open_source(tmp_path / "lists" / "x.parquet")) == [1, 2, 3]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([encoded(1), None], BINARY),
        pa.array(["a.png", None], TEXT),
        pa.array([{"bytes": encoded(1), "path": None}, None], STRUCT),
        pa.array([{"bytes": encoded(1), "path": None}, {"bytes": None, "path": None}], STRUCT),
    ],
)
def test_a_row_without_an_image_is_unreadable_and_the_others_are_not(tmp_path: Path, column: pa.Array) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1))
    first, second = tiles(open_source(write(tmp_path / "x.parquet", {"image": column})))

    assert decode(first)[0, 0, 0] == 1
    with pytest.raises(UnreadableImageError, match=r"its row holds no image \(null\)"):
        decode(second)


def not_utf8(kind: pa.DataType = TEXT) -> pa.Array:
    return pa.array([b"a.png", b"\xff.png"], pa.binary()).view(kind)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array(["a.png", "b\0.png"]), r"the path in its row is none: 'b\x00.png'"),
        (not_utf8(), "the path in its row is not UTF-8"),
        (pa.StructArray.from_arrays([pa.nulls(2, BINARY), not_utf8()], ["bytes", "path"]), "is not UTF-8"),
        (pa.array([{"bytes": encoded(1), "path": 7}, {"bytes": None, "path": 7}]), "the path in its row is none: 7"),
    ],
)
def test_a_row_with_a_path_that_is_none_is_unreadable_and_the_others_are_not(
    tmp_path: Path, column: pa.Array, told: str
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1))
    first, second = tiles(open_source(write(tmp_path / "x.parquet", {"image": column})))

    assert decode(first)[0, 0, 0] == 1
    with pytest.raises(UnreadableImageError) as caught:
        decode(second)
    assert told in str(caught.value)


def test_a_path_that_is_not_utf8_is_not_asked_for_where_bytes_are(tmp_path: Path) -> None:
    column = pa.StructArray.from_arrays([pa.array([encoded(1), encoded(2)]), not_utf8()], ["bytes", "path"])

    assert greys(open_source(write(tmp_path / "x.parquet", {"image": column}))) == [1, 2]


def test_an_id_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 2, "id": not_utf8()})

    assert f"{path} has an id that is not UTF-8, b'\\xff.png', within 2 rows from row 0 on." in refusal(path)


def test_duplicate_ids_are_named_with_their_rows_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"x"] * 4, "id": ["one", "two", "three", "two"]}, row_group_size=2)
    write(tmp_path / "b.parquet", {"image": [b"x"] * 2, "id": ["four", "two"]})

    told = refusal(tmp_path)

    assert "'two' in a.parquet row 1 and a.parquet row 3 and b.parquet row 1" in told
    assert "'one'" not in told
    assert "id_column='none'" in told
    assert len(tiles(open_source(tmp_path, id_column="none"))) == 6


def test_an_integer_and_the_same_as_text_are_one_id(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"x"], "id": [1]})
    write(tmp_path / "b.parquet", {"image": [b"x"], "id": ["1"]})

    assert "'1' in a.parquet row 0 and b.parquet row 0" in refusal(tmp_path)


def test_a_row_without_an_id_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"] * 3, "id": ["a", "b", None]})

    assert refusal(path) == f"Row 2 of {path} has no id (null)."


class Same(str):
    """Text whose hash is another's, as 64 bits allow."""

    __slots__ = ()
    __hash__ = lambda self: 1  # noqa: E731


def test_ids_of_equal_hashes_are_compared_in_full() -> None:
    different = [("f", 0, [Same("a"), Same("b"), Same("c")])]
    alike = [("f", 0, [Same("a"), Same("b")]), ("g", 5, [Same("b")])]

    assert find_duplicates(lambda: different) == {}
    assert list(find_duplicates(lambda: alike).items()) == [("b", ["f row 1", "g row 5"])]
    assert find_duplicates(lambda: []) == {}


def test_of_many_duplicates_some_are_named() -> None:
    batches = [("f", 0, [str(k % 50) for k in range(500)])]

    found = find_duplicates(lambda: batches, most=2)

    assert found == {"0": ["f row 0", "f row 50", "f row 100"], "1": ["f row 1", "f row 51", "f row 101"]}


def test_files_that_differ_in_their_columns_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"x"]})
    write(tmp_path / "b.parquet", {"picture": [b"x"]})
    assert "The column 'image' of" in refusal(tmp_path)

    write(tmp_path / "b.parquet", {"image": ["x.png"]})
    assert "a.parquet and b.parquet in" in refusal(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"text", lambda b: b[: len(b) // 2]])
def test_a_damaged_file_is_told_before_anything_is_read(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = numbered(tmp_path / "a.parquet", 10, group=5)
    path.write_bytes(damage(path.read_bytes()))

    assert refusal(tmp_path).startswith(f"{path} is no readable Parquet file: ")


def test_a_file_that_changed_meanwhile_is_told(tmp_path: Path) -> None:
    source = open_source(numbered(tmp_path / "a.parquet", 10, group=5))
    numbered(tmp_path / "a.parquet", 9, group=5)

    with pytest.raises(InputError, match="held 10 rows when it was listed"):
        tiles(source)


def test_the_fingerprint_changes_with_the_columns_and_the_stamp_with_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"] * 2, "other": [b"x"] * 2, "id": ["a", "b"]})
    options: list[dict[str, str]] = [{}, {"image_column": "other"}, {"id_column": "none"}]
    seen = {open_source(path, **asked).fingerprint() for asked in options}
    assert len(seen) == 3
    assert open_source(path).fingerprint() in seen
    stamp = open_source(path).pieces()[0].stamp
    assert str(stamp).endswith(" bytes, 2 rows")

    write(path, {"image": [b"x"] * 3, "other": [b"x"] * 3, "id": ["a", "b", "c"]})

    assert open_source(path).fingerprint() in seen
    assert open_source(path).pieces()[0].stamp != stamp


def test_memory_stays_flat_within_one_large_row_group(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.bytes(100_000) for _ in range(2000)]  # 200 MB that do not compress
    path = write(tmp_path / "a.parquet", {"image": images}, row_group_size=2000, use_dictionary=False)
    del images
    assert pq.ParquetFile(path).num_row_groups == 1
    source = open_source(path)
    before, peaks = pa.total_allocated_bytes(), []
    for number, tile in enumerate(source.tiles(source.pieces()[0])):
        assert isinstance(tile.image, bytes)
        if number % 50 == 0:
            peaks.append(pa.total_allocated_bytes())

    assert len(peaks) == 40
    assert max(peaks) - before < 150e6  # pyarrow writes pages of 1024 rows: 102 MB
