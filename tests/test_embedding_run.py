"""runtime.embed: every readable tile once, with the numbers that the model gives; folders that are gone on with."""

import datetime
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from embedding_inputs import NAME, Pieces, embeddings_of, expected, pixels, table_of, tiny

import runtime
from runtime.backbone import Backbone
from runtime.embedding import folder as folders
from runtime.embedding.engine import Pace
from runtime.embedding.opening import Wish, opened
from runtime.embedding.parts import split
from runtime.embedding.served import describe
from runtime.embedding.tile import Piece, Tile
from runtime.embedding.work import carry_out
from runtime.errors import InputError, OptionError, OutputError

MADE = Pieces({"a b/c": 70, "d": 5, "e": 0}, bad=frozenset({"a b/c/3", "d/4"}))


@pytest.fixture(scope="module")
def model(built: Path) -> Iterator[Backbone]:
    with tiny(built) as made:
        yield made


def run(model: Backbone, source: Any, out: Path, **options: Any) -> Any:
    return runtime.embed(model, source, out, **({"batch_size": 8, "part_tiles": 16} | options))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return when each part was written, and what it holds."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("part-*")}


@pytest.mark.parametrize("coarse", [False, True], ids=["counts known", "only reading tells"])
def test_every_readable_tile_has_one_row_with_the_models_numbers(model: Backbone, tmp_path: Path, coarse: bool) -> None:
    summary = run(model, replace(MADE, coarse=coarse), tmp_path)

    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids
    np.testing.assert_array_equal(embeddings_of(tmp_path), expected(model, MADE.ids))
    assert (summary.rows, summary.unreadable, summary.tiles) == (73, 2, 75)
    assert (summary.backend, summary.device, summary.model) == ("onnx", "cpu", NAME)
    assert 75 / summary.tiles_per_second == pytest.approx(summary.seconds, abs=0.001)  # told in milliseconds
    assert 0 <= summary.starved <= 1


def test_what_cannot_be_read_is_listed_with_the_reason(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)

    listed = pyarrow.dataset.dataset(tmp_path / "_unreadable").to_table().to_pylist()
    assert listed == [{"id": id, "reason": "it is empty (0 bytes)"} for id in ("a b/c/3", "d/4")]


def test_a_piece_of_which_nothing_can_be_read_is_done(model: Backbone, tmp_path: Path) -> None:
    nothing = Pieces({"a": 10}, bad=frozenset(f"a/{n}" for n in range(10)))

    summary = run(model, nothing, tmp_path)

    assert (summary.rows, summary.unreadable) == (0, 10)
    assert table_of(tmp_path).schema.names == ["id", "embedding"]
    assert run(model, nothing, tmp_path, resume=True).tiles == 0


def test_the_columns_and_what_the_schema_tells(model: Backbone, tmp_path: Path) -> None:
    run(model, replace(MADE, slides=True), tmp_path)

    schema = pyarrow.dataset.dataset(tmp_path).schema
    assert [(field.name, str(field.type)) for field in schema] == [
        ("id", "string"),
        *[("x", "int64"), ("y", "int64"), ("size", "int64"), ("mpp", "double")],
        ("embedding", "fixed_size_list<element: float>[48]"),
    ]
    assert table_of(tmp_path)["x"].to_pylist()[:5] == [0, 10, 20, 40, 50]
    told = {name.decode(): value.decode() for name, value in schema.metadata.items()}
    assert (told["model"], told["backend"], told["precision"], told["weights"]) == (NAME, "onnx", "fp32", "random:0")
    assert json.loads(told["artifact"])["key"] == model.info["artifact"]["key"]
    assert json.loads(told["versions"])["backbone-runtime"] == runtime.__version__


def test_parts_hold_whole_batches_and_as_many_tiles_as_asked(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path, part_tiles=30)

    assert sorted(files(tmp_path)) == [
        "part-a%20b%2Fc-0000000000-0000000024.parquet",
        "part-a%20b%2Fc-0000000024-0000000048.parquet",
        "part-a%20b%2Fc-0000000048-0000000070-end.parquet",
        "part-d-0000000000-0000000005-end.parquet",
    ]


def test_numbers_are_stored_so_that_they_shrink(model: Backbone, tmp_path: Path) -> None:
    run(model, Pieces({"a": 600}), tmp_path, part_tiles=600)

    column = pq.ParquetFile(next(tmp_path.glob("part-*"))).metadata.row_group(0).column(1)
    assert column.path_in_schema == "embedding.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.total_compressed_size < 0.9 * column.num_values * 4


def test_half_precision_is_stored_on_request(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path, dtype="float16")

    assert (
        str(pyarrow.dataset.dataset(tmp_path).schema.field("embedding").type)
        == "fixed_size_list<element: halffloat>[48]"
    )
    np.testing.assert_array_equal(embeddings_of(tmp_path), expected(model, MADE.ids).astype(np.float16))


def test_a_number_that_does_not_fit_is_an_error(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Backbone.__call__
    monkeypatch.setattr(Backbone, "__call__", lambda self, images: ours(self, images) * 1e6)

    with pytest.raises(OutputError, match=r"A value of \S+ does not fit float16, which ends at 6\.55e\+04"):
        run(model, MADE, tmp_path, dtype="float16")


def test_without_a_folder_rows_are_yielded(model: Backbone) -> None:
    batches = list(runtime.embed(model, replace(MADE, slides=True), batch_size=8))

    assert [len(batch.ids) for batch in batches[:2]] == [7, 8]
    assert [id for batch in batches for id in batch.ids] == MADE.ids
    np.testing.assert_array_equal(np.concatenate([b.embeddings for b in batches]), expected(model, MADE.ids))
    assert [one.id for batch in batches for one in batch.unreadable] == ["a b/c/3", "d/4"]
    assert batches[1].coordinates["x"].tolist() == [80, 90, 100, 110, 120, 130, 140, 150]


def test_an_iterator_that_is_left_leaves_no_thread(model: Backbone) -> None:
    before = threading.active_count()
    rows = runtime.embed(model, Pieces({"a": 5000}), batch_size=2, workers=3)
    next(rows)
    assert threading.active_count() > before
    rows.close()
    assert threading.active_count() == before


def test_a_name_is_loaded_with_the_keywords_of_load_model(built: Path, tmp_path: Path) -> None:
    options = {"weights": "random", "artifacts": built, "device": "cpu", "backend": "openvino"}
    summary = runtime.embed(NAME, MADE, tmp_path, batch_size=8, **options)

    assert summary.backend == "openvino"
    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids


def test_a_run_that_broke_is_gone_on_with(model: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'a b/c' cannot be read on: \[Errno 5\] .* with --resume"):
        run(model, replace(MADE, breaks="a b/c/40"), tmp_path)
    done = files(tmp_path)
    assert sorted(done) == [f"part-a%20b%2Fc-{start:010}-{start + 16:010}.parquet" for start in (0, 16)]

    summary = run(model, MADE, tmp_path, resume=True)

    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids
    assert {name: files(tmp_path)[name] for name in done} == done
    assert (summary.rows, summary.unreadable, summary.tiles) == (73, 2, 43)


@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_done_is_not_read_again(model: Backbone, tmp_path: Path, coarse: bool) -> None:
    source = replace(MADE, coarse=coarse, read=[])
    run(model, source, tmp_path)
    source.read.clear()

    summary = run(model, source, tmp_path, resume=True)

    assert source.read == []
    assert (summary.rows, summary.unreadable, summary.tiles) == (73, 2, 0)


def test_a_part_that_is_gone_is_made_again_the_same(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    before = files(tmp_path)
    (tmp_path / "part-a%20b%2Fc-0000000016-0000000032.parquet").unlink()

    run(model, MADE, tmp_path, resume=True)

    assert {name: data for name, (_, data) in files(tmp_path).items()} == {n: data for n, (_, data) in before.items()}


def test_what_a_killed_run_left_is_cleaned_up(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    part = tmp_path / "part-d-0000000000-0000000005-end.parquet"
    part.unlink()  # killed after it told what it could not read, before it published the rows
    left = tmp_path / f".{part.name}.77.tmp"
    left.write_bytes(b"PAR1")

    assert run(model, MADE, tmp_path, part_tiles=4, batch_size=4, resume=True).unreadable == 2
    assert not left.exists()
    listed = pyarrow.dataset.dataset(tmp_path / "_unreadable").to_table()["id"].to_pylist()
    assert listed == ["a b/c/3", "d/4"]
    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids


def test_workers_share_a_task(model: Backbone, tmp_path: Path) -> None:
    speed = Pace(8, 1)
    with opened(Wish(tmp_path, part_tiles=16), describe(model), MADE, speed) as task:
        shares = [replace(task, ranges=(one,)) for one in split(task.ranges, 2 * task.part_tiles)]
        assert len(shares) == 4
        for share in [*reversed(shares), shares[1]]:  # in any order, one of them twice, each as it is sent to a worker
            again, backbone, source = pickle.loads(pickle.dumps((share, model, MADE)))
            carry_out(backbone, source, again, speed, lambda rows: False)

    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids
    np.testing.assert_array_equal(embeddings_of(tmp_path), expected(model, MADE.ids))
    assert run(model, MADE, tmp_path, resume=True).tiles == 0


def test_another_input_or_model_is_refused(model: Backbone, built: Path, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    before = files(tmp_path)

    for options, said in (
        ({}, "already holds 6 parts of this very run. Go on with --resume, or begin again with --overwrite"),
        ({"resume": True, "dtype": "float16"}, 'dtype was "float32", and is now "float16"'),
    ):
        with pytest.raises(OutputError) as error:
            run(model, MADE, tmp_path, **options)
        assert said in str(error.value)
    with pytest.raises(OutputError, match="the input is another one: files of other names"):
        run(model, replace(MADE, name="other"), tmp_path, resume=True)
    with tiny(built, backend="eager", seed=1) as other, pytest.raises(OutputError, match=r'weights was "random:0"'):
        run(other, MADE, tmp_path, resume=True)
    assert files(tmp_path) == before


def test_overwriting_discards_what_was_there(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    other = Pieces({"f": 9})

    assert run(model, other, tmp_path, overwrite=True).rows == 9
    assert table_of(tmp_path)["id"].to_pylist() == other.ids
    assert not (tmp_path / "_unreadable").exists()


@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_what_nobody_of_us_wrote_is_never_removed(model: Backbone, tmp_path: Path, mode: str) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match=r"holds what no run of embed has put there: thesis\.tex"):
        run(model, MADE, tmp_path, **{mode: True})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_damaged_record_can_be_overwritten(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    (tmp_path / "_embed.json").write_text("{")

    with pytest.raises(OutputError, match=r"_embed\.json is damaged"):
        run(model, MADE, tmp_path, resume=True)
    assert run(model, MADE, tmp_path, overwrite=True).rows == 73


def test_the_record_lists_every_run_that_worked_at_the_folder(built: Path, model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    with tiny(built, backend="torchscript") as other:
        run(other, MADE, tmp_path, resume=True)

    record = json.loads((tmp_path / "_embed.json").read_text())
    assert [(one["backend"], one["device"], one["precision"]) for one in record["runs"]] == [
        ("onnx", "cpu", "fp32"),
        ("torchscript", "cpu", "fp32"),
    ]
    assert "torch" in record["runs"][1]["versions"]
    when = [datetime.datetime.fromisoformat(one["when"]) for one in record["runs"]]
    assert datetime.timedelta() <= when[1] - when[0] < datetime.timedelta(hours=1)
    assert record["made"]["backend"] == "onnx"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "whole: free space, and run the same command with --resume"),
        (errno.EDQUOT, "whole: free space, and run the same command with --resume"),
        (errno.EROFS, "whole: mend the permissions, and run the same command with --resume"),
        (errno.EIO, "whole: mend that, and run the same command with --resume"),
        (errno.ENOENT, "Name a folder, or a place where one can be made"),
    ],
)
def test_what_cannot_be_written_is_told_with_what_helps(number: int, remedy: str) -> None:
    said = f"^out cannot be written: {os.strerror(number)}[.] .*{remedy}[.]$"
    with pytest.raises(OutputError, match=said), folders.output_errors(Path("out")):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_where_the_folder_should_be_is_no_full_disk(model: Backbone, tmp_path: Path, below: str) -> None:
    (tmp_path / "out").write_text("a file")

    with pytest.raises(OutputError, match=r"cannot be written: .* Name a folder, or a place where one can be made[.]$"):
        run(model, MADE, tmp_path / "out" / below, resume=True)
    assert (tmp_path / "out").read_text() == "a file"


def test_two_runs_into_one_folder_exclude_each_other(model: Backbone, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(done: int, to_do: int | None) -> None:
        if not refused:
            with pytest.raises(OutputError) as error:
                run(model, MADE, tmp_path, resume=True)
            refused.append(str(error.value))

    assert run(model, MADE, tmp_path, progress=second).rows == 73
    assert refused == [f"Another run is writing to {tmp_path}. Wait until it has ended, or choose another folder."]


def test_progress_tells_what_is_done_and_to_do(model: Backbone, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    run(model, MADE, tmp_path / "known", progress=lambda done, to_do: told.append((done, to_do)))
    assert told[:2] == [(0, 75), (8, 75)]
    assert told[-1] == (75, 75)

    told.clear()
    run(
        model, replace(MADE, coarse=True), tmp_path / "unknown", progress=lambda done, to_do: told.append((done, to_do))
    )
    assert told[-1] == (75, None)


def test_progress_of_a_run_that_goes_on_counts_what_was_done_before(model: Backbone, tmp_path: Path) -> None:
    run(model, MADE, tmp_path)
    next(tmp_path.glob("part-*0016-*")).unlink()
    told: list[tuple[int, int | None]] = []

    summary = run(model, MADE, tmp_path, resume=True, progress=lambda done, every: told.append((done, every)))

    assert told == [(59, 75), (67, 75), (75, 75)]
    assert summary.tiles == 16


@pytest.fixture
def handler() -> Iterator[Any]:
    """Python's own handling of Ctrl-C: background jobs inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_finishes_the_batch_and_publishes_it(model: Backbone, tmp_path: Path, handler: Any) -> None:
    def interrupt(done: int, to_do: int | None) -> None:
        if done == 24:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(model, MADE, tmp_path, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert table_of(tmp_path)["id"].to_pylist() == [f"a b/c/{n}" for n in range(24) if n != 3]

    run(model, MADE, tmp_path, resume=True)
    assert table_of(tmp_path)["id"].to_pylist() == MADE.ids


def test_a_second_interrupt_does_not_wait(model: Backbone, tmp_path: Path, handler: Any) -> None:
    def interrupt(done: int, to_do: int | None) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        run(model, MADE, tmp_path, progress=interrupt)
    assert files(tmp_path) == {}


def test_an_input_that_shrank_is_an_error(model: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a b/c' was to hold tiles 0 to 70, and ended after 68: it changed while"):
        run(model, replace(MADE, fewer=2), tmp_path)


def test_a_hair_of_an_image_is_not_blown_up(model: Backbone, tmp_path: Path) -> None:
    class Hair(Pieces):
        def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:  # noqa: ARG002
            yield from [Tile("hair", np.zeros((1, 5000, 3), np.uint8)), Tile("tile", pixels("tile"))][start:]

    summary = run(model, Hair({"a": 2}), tmp_path)

    assert (summary.rows, summary.unreadable) == (1, 1)
    (told,) = pq.read_table(tmp_path / "_unreadable" / "part-a-0000000000-0000000002-end.parquet").to_pylist()
    assert told == {"id": "hair", "reason": "it is 5000 x 1 pixels: more than 50 times as long as wide"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an int of at least 1."),
        ({"workers": 1.5}, "workers=1.5 must be an int of at least 1."),
        ({"part_tiles": -1}, "part_tiles=-1 must be an int of at least 1."),
        ({"dtype": "float64"}, "dtype='float64' is none of 'float32', 'float16'."),
        ({"resume": True, "overwrite": True}, "leave one out"),
        ({"precision": "fp16"}, "precision: test/tiny_vit is loaded already."),
        ({"reuse_outputs": True}, "reuse_outputs: embed keeps"),
    ],
)
def test_wrong_options_are_told(model: Backbone, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as error:
        run(model, MADE, tmp_path / "out", **options)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_options_of_a_folder_need_one(model: Backbone) -> None:
    with pytest.raises(OptionError, match=r"resume, dtype: only with a folder to write to; name one with out=\."):
        runtime.embed(model, MADE, resume=True, dtype="float16")


def test_what_takes_no_pictures_says_so_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this backbone takes volumes"):
        runtime.embed("test/volumes", MADE, tmp_path / "out", backend="eager", device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_is_only_yielded_needs_nothing_that_writes() -> None:
    code = """
import sys, runtime
assert callable(runtime.embed), runtime.embed
print([name for name in ("pyarrow", "zarr", "filelock", "rich", "torch", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
