"""Feature maps as Zarr arrays: each tile's in the row that Parquet names, whatever was killed meanwhile."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from embedding_inputs import Pieces, pixels, table_of, tiny

import runtime
from runtime.backbone import Backbone
from runtime.embedding import maps
from runtime.errors import InputError, OutputError

MADE = Pieces({"a": 30, "b": 5, "c": 0, "d": 9}, bad=frozenset({"a/3", "d/8"}))


@pytest.fixture(scope="module")
def model(built: Path) -> Iterator[Backbone]:
    with tiny(built, out_indices=2) as made:
        yield made


def run(model: Backbone, source: Any, out: Path, **options: Any) -> Any:
    return runtime.embed(model, source, out, **({"batch_size": 4, "part_tiles": 12} | options))


def arrays(out: Path) -> list[Any]:
    group = zarr.open_group(out / "_maps.zarr", mode="r")
    return [group[f"map_{number}"] for number in range(2)]


def assert_each_tile_has_its_maps(model: Backbone, out: Path) -> None:
    rows = table_of(out)
    assert rows["id"].to_pylist() == MADE.ids
    read = [array[:] for array in arrays(out)]
    for id, row in zip(rows["id"].to_pylist(), rows["row"].to_pylist(), strict=True):
        for got, expected in zip(read, model(model.preprocess(pixels(id))), strict=True):
            np.testing.assert_array_equal(got[row], expected[0])


def test_each_tile_has_its_maps_in_the_row_that_parquet_names(model: Backbone, tmp_path: Path) -> None:
    summary = run(model, MADE, tmp_path)

    assert (summary.rows, summary.unreadable) == (42, 2)
    assert_each_tile_has_its_maps(model, tmp_path)
    assert table_of(tmp_path).schema.names == ["id", "row"]


def test_the_arrays_say_what_they_are(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)

    for number, array in enumerate(arrays(tmp_path)):
        assert array.shape == (52, 48, 4, 4)  # 30, 5 and 9 tiles, each begun at a multiple of 4
        assert (array.shards, array.chunks) == ((4, 48, 4, 4), (1, 48, 4, 4))
        assert array.dtype == np.float32
        assert array.metadata.dimension_names == ("tile", "channel", "y", "x")
        assert array.attrs["out_index"] == (-2, -1)[number]
    empty = np.isnan(arrays(tmp_path)[0][:]).all(axis=(1, 2, 3))
    assert sorted(set(range(52)) - set(np.flatnonzero(empty))) == table_of(tmp_path)["row"].to_pylist()


def test_a_tar_is_counted_first(model: Backbone, tmp_path: Path) -> None:
    run(model, replace(MADE, coarse=True), tmp_path)
    assert_each_tile_has_its_maps(model, tmp_path)


def test_what_was_written_without_its_part_is_written_again(model: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read on"):
        run(model, replace(MADE, breaks="a/20"), tmp_path)
    files = [tmp_path / "_maps.zarr" / "map_0" / f"c.{file}.0.0.0" for file in (2, 3)]
    whole = files[0].read_bytes()
    part = tmp_path / "part-a-0000000000-0000000012.parquet"
    part.unlink()  # killed before it was published
    files[0].write_bytes(whole[:100])  # and while the file was written, on a disk that tears writes

    run(model, MADE, tmp_path, resume=True)

    assert files[0].read_bytes() == whole
    assert_each_tile_has_its_maps(model, tmp_path)


def test_another_batch_size_would_tear_files_of_other_parts(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)

    with pytest.raises(OutputError, match="batch_size was 4, and is now 8"):
        run(model, MADE, tmp_path, resume=True, batch_size=8)


def test_a_map_that_cannot_be_written_loses_no_row(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = maps.write

    def fail_once(path: Path, layout: maps.Layout, rows: Any) -> None:
        if rows.place.start == 16:
            monkeypatch.setattr(maps, "write", write)
            raise OSError(28, "No space left on device")
        write(path, layout, rows)

    monkeypatch.setattr(maps, "write", fail_once)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device.*--resume"):
        run(model, MADE, tmp_path)
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-a-0000000000-0000000012.parquet"]

    run(model, MADE, tmp_path, resume=True)
    assert_each_tile_has_its_maps(model, tmp_path)


def test_half_precision_on_request(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path, dtype="float16")

    assert arrays(tmp_path)[1].dtype == np.float16
    row = table_of(tmp_path)["row"].to_pylist()[5]
    expected = model(model.preprocess(pixels(MADE.ids[5])))[1][0].astype(np.float16)
    np.testing.assert_array_equal(arrays(tmp_path)[1][row], expected)


def test_without_a_folder_maps_are_yielded(model: Backbone) -> None:
    first = next(iter(runtime.embed(model, MADE, batch_size=4)))

    assert first.ids == ("a/0", "a/1", "a/2")
    assert [output.shape for output in first.outputs] == [(3, 48, 4, 4)] * 2


def test_overwriting_makes_new_arrays(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    run(model, Pieces({"z": 3}), tmp_path, overwrite=True)

    assert arrays(tmp_path)[0].shape == (4, 48, 4, 4)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells in /proc which file is synced")
def test_maps_their_folders_and_what_describes_them_outlast_a_power_cut(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{tmp_path}/"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    run(model, MADE, tmp_path)

    first = next(place for place, name in enumerate(synced) if name.startswith(".part-"))
    before = {name for name in synced[:first] if name.startswith("_maps.zarr")}
    arrays = {f"_maps.zarr/map_{number}{rest}" for number in (0, 1) for rest in ("", "/zarr.json", "/c.0.0.0.0")}
    assert {"_maps.zarr", "_maps.zarr/zarr.json"} | arrays <= before
    assert str(tmp_path) in synced[:first]
    for number in (0, 1):  # the folder after the names in it
        after = synced[synced.index(f"_maps.zarr/map_{number}/c.0.0.0.0") : first]
        assert f"_maps.zarr/map_{number}" in after
