"""What is broken, found, mended and gone on with: the rows are those of a run over the mended input."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from embedding_inputs import Pieces, embeddings_of, image_folder, jpeg, table_of, tiny

import runtime
from runtime.backbone import Backbone
from runtime.errors import OutputError


@pytest.fixture(scope="module")
def model(built: Path) -> Iterator[Backbone]:
    with tiny(built) as made:
        yield made


def run(model: Backbone, source: Any, out: Path, **options: Any) -> Any:
    return runtime.embed(model, source, out, **({"batch_size": 4, "part_tiles": 8} | options))


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member, content = tarfile.TarInfo(f"{name}.jpg"), jpeg(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, names: list[str]) -> None:
    pq.write_table(pa.table({"id": names, "image": [jpeg(name) for name in names]}), path, row_group_size=5)


def set_of(folder: Path, suffix: str, write: Callable[[Path, list[str]], None]) -> Path:
    """Three files of 20 images."""
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}{suffix}", [f"{name}{number:02}" for number in range(20)])
    return folder


def unreadable(out: Path) -> list[str]:
    listed = pyarrow.dataset.dataset(out / "_unreadable").to_table()["id"].to_pylist()
    return sorted(listed)


def same_as_anew(model: Backbone, source: Path, out: Path, tmp_path: Path) -> None:
    run(model, source, tmp_path / "anew")
    assert table_of(out)["id"].to_pylist() == table_of(tmp_path / "anew")["id"].to_pylist()
    np.testing.assert_array_equal(embeddings_of(out), embeddings_of(tmp_path / "anew"))


def remove_what_was_named(error: str, out: Path) -> None:
    """Do what the message says."""
    words = error.split("remove ")[1].split(". Then run")[0].split(" (")[0]
    for pattern in words.split(", "):
        found = list(out.glob(pattern))
        assert found, pattern
        for part in found:
            part.unlink()


def test_an_image_is_mended_and_its_part_made_again(model: Backbone, tmp_path: Path) -> None:
    source, out = image_folder(tmp_path / "in", 20), tmp_path / "out"
    (source / "000010.jpg").write_bytes(b"")
    run(model, source, out)
    assert unreadable(out) == ["000010.jpg"]

    (source / "000010.jpg").write_bytes(jpeg("10"))
    for listed in (out / "_unreadable").iterdir():  # as docs/embed.md says
        (out / listed.name).unlink()
    summary = run(model, source, out, resume=True)

    assert (summary.rows, summary.unreadable, summary.tiles) == (20, 0, 8)
    same_as_anew(model, source, out, tmp_path)


@pytest.mark.parametrize(("suffix", "write"), [(".tar", write_tar), (".parquet", write_parquet)])
def test_a_file_cut_short_is_listed_mended_and_embedded_anew(
    model: Backbone, tmp_path: Path, suffix: str, write: Callable[[Path, list[str]], None]
) -> None:
    source, out = set_of(tmp_path / "in", suffix, write), tmp_path / "out"
    whole = (source / f"b{suffix}").read_bytes()
    (source / f"b{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
    summary = run(model, source, out)
    assert unreadable(out) == [f"b{suffix}"]
    assert summary.rows + summary.unreadable == summary.tiles > 40
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-[ac]*")}

    (source / f"b{suffix}").write_bytes(whole)
    with pytest.raises(OutputError, match=rf"files that have changed since: 'b{suffix}' .*: remove part-b") as error:
        run(model, source, out, resume=True)
    remove_what_was_named(str(error.value), out)
    summary = run(model, source, out, resume=True)

    assert (summary.rows, summary.unreadable, summary.tiles) == (60, 0, 20)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("part-[ac]*")} == before
    same_as_anew(model, source, out, tmp_path)


@pytest.mark.parametrize(("suffix", "write"), [(".tar", write_tar), (".parquet", write_parquet)])
def test_a_file_without_parts_may_change_and_is_known_as_it_is_from_then_on(
    model: Backbone, tmp_path: Path, suffix: str, write: Callable[[Path, list[str]], None]
) -> None:
    source, out = set_of(tmp_path / "in", suffix, write), tmp_path / "out"
    run(model, source, out)
    for part in out.glob("part-b*"):
        part.unlink()
    write(source / f"b{suffix}", [f"b{number:02}" for number in range(31)])

    assert run(model, source, out, resume=True).rows == 71
    assert run(model, source, out, resume=True).tiles == 0
    same_as_anew(model, source, out, tmp_path)
    write(source / f"b{suffix}", [f"b{number:02}" for number in range(20)])
    with pytest.raises(OutputError, match=r"remove part-b.*\?{10}-\?{10}\*\.parquet \(4 parts\)"):
        run(model, source, out, resume=True)


def test_several_parts_are_named_and_what_they_say_can_be_done(model: Backbone, tmp_path: Path) -> None:
    source, out = set_of(tmp_path / "in", ".tar", write_tar), tmp_path / "out"
    run(model, source, out, part_tiles=4)
    write_tar(source / "b.tar", ["b00", "b01"])

    with pytest.raises(OutputError, match=r"\(5 parts\)") as error:
        run(model, source, out, resume=True)
    remove_what_was_named(str(error.value), out)

    assert run(model, source, out, resume=True).rows == 42
    same_as_anew(model, source, out, tmp_path)


def test_with_feature_maps_a_file_may_not_get_longer(model: Backbone, built: Path, tmp_path: Path) -> None:
    source, out = set_of(tmp_path / "in", ".tar", write_tar), tmp_path / "out"
    with tiny(built, out_indices=2) as maps:
        run(maps, source, out)
        for part in out.glob("part-b*"):
            part.unlink()
        assert run(maps, source, out, resume=True).tiles == 20
        write_tar(source / "b.tar", ["b00"])
        with pytest.raises(OutputError, match="more or fewer tiles than it did"):
            run(maps, source, out, resume=True)


def test_a_folder_that_does_not_know_its_input_says_so(model: Backbone, tmp_path: Path) -> None:
    run(model, Pieces({"a": 3}), tmp_path)
    (tmp_path / "_input.json").write_text("{")

    with pytest.raises(OutputError, match=r"_input\.json cannot be read: .* with --overwrite"):
        run(model, Pieces({"a": 3}), tmp_path, resume=True)
    assert run(model, Pieces({"a": 3}), tmp_path, overwrite=True).rows == 3
