"""What an actor does with a range: the same parts whoever does it, nothing twice, nothing after the run is over."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import request_for
from embedding_inputs import Pieces, embeddings_of, expected, table_of, tiny

from runtime.backbone import Backbone
from runtime.embedding import folder as folders
from runtime.embedding.engine import Pace, embed_ranges
from runtime.embedding.opening import Wish, opened
from runtime.embedding.output import Output
from runtime.embedding.parts import Part, Range, missing
from runtime.embedding.served import describe
from runtime.embedding.tile import Piece
from runtime.embedding.worker import ATTEMPTS, Job, Worker, begin, embed_range, remaining, told
from runtime.errors import BackboneError, ClusterError, InputError, OutputError

MADE = Pieces({"a": 70}, bad=frozenset({"a/3"}))
PACE = Pace(8, 2)
KNOWN, UNKNOWN = Piece("a", 70), Piece("a", None)


@pytest.fixture(scope="module")
def model(built: Path) -> Iterator[Backbone]:
    with tiny(built) as made:
        yield made


@pytest.fixture
def job(model: Backbone, tmp_path: Path) -> Iterator[Job]:
    """A run that is going on: its folder is held and begun."""
    with (
        opened(Wish(tmp_path, part_tiles=16), describe(model), MADE, PACE) as task,
        folders.staged(tmp_path) as staging,
    ):
        output = replace(task.output, staging=staging)
        yield Job(request_for("test/tiny_vit"), MADE, task.ranges, PACE, output, staging, task.part_tiles, None)


def touch(folder: Path, *parts: tuple[int, int, bool]) -> None:
    for start, stop, last in parts:
        (folder / Part("a", start, stop, last).name).touch()


@pytest.mark.parametrize(
    ("one", "there", "left"),
    [
        (Range(KNOWN, 0, 70), [], [(0, 32), (32, 64), (64, 70)]),
        (Range(KNOWN, 0, 70), [(0, 32, False)], [(32, 64), (64, 70)]),
        (Range(KNOWN, 0, 70), [(32, 64, False)], [(0, 32), (64, 70)]),
        (Range(KNOWN, 0, 70), [(0, 32, False), (32, 64, False), (64, 70, True)], []),
        (Range(KNOWN, 8, 40), [(8, 40, False)], []),
        (Range(UNKNOWN, 0), [], [(0, None)]),
        (Range(UNKNOWN, 0), [(0, 32, False)], [(32, None)]),
        (Range(UNKNOWN, 8), [(8, 40, False), (40, 72, False)], [(72, None)]),
        (Range(UNKNOWN, 0), [(0, 32, False), (32, 64, True)], []),
    ],
)
def test_what_an_earlier_worker_has_published_is_not_done_again(
    tmp_path: Path, one: Range, there: list[tuple[int, int, bool]], left: list[tuple[int, int | None]]
) -> None:
    touch(tmp_path, *there)

    assert [(r.start, r.stop) for r in remaining(one, 32, tmp_path)] == left


@pytest.mark.parametrize("stop", [None, 70], ids=["only reading tells", "count known"])
def test_a_range_that_was_begun_is_finished_with_the_same_parts(model: Backbone, job: Job, stop: int | None) -> None:
    one = Range(Piece("a", stop), 0, stop)
    whole = embed_range(model, job, one)
    parts = {path.name: path for path in job.output.folder.glob("part-*")}
    for name in list(parts)[1:3]:
        parts[name].unlink()

    again = embed_range(model, job, one)

    assert {path.name for path in job.output.folder.glob("part-*")} == set(parts)
    assert whole.tiles == again.tiles == 70
    assert missing([KNOWN], folders.parts(job.output.folder)) == []
    assert table_of(job.output.folder)["id"].to_pylist() == MADE.ids
    np.testing.assert_array_equal(embeddings_of(job.output.folder), expected(model, MADE.ids))


def test_whoever_comes_after_the_end_of_the_run_publishes_nothing(model: Backbone, tmp_path: Path) -> None:
    with opened(Wish(tmp_path, part_tiles=16), describe(model), MADE, PACE) as task:
        with folders.staged(tmp_path) as staging:
            output = replace(task.output, staging=staging)
        rest = (staging, task.part_tiles, None)
        late = Job(request_for("test/tiny_vit"), MADE, task.ranges, PACE, output, *rest)

        with pytest.raises(OutputError, match=r"the run is over|cannot be written"):
            embed_range(model, late, task.ranges[0])
        with pytest.raises(OutputError, match="cannot be written"):
            late.output.publish(list(embed_ranges(model, MADE, task.ranges, PACE)))

    assert list(tmp_path.glob("part-*")) == []


def test_the_next_run_takes_away_where_the_last_ones_workers_fill_their_files(model: Backbone, tmp_path: Path) -> None:
    left = tmp_path / ".run-0123"
    left.mkdir()
    (left / "half").touch()

    with opened(Wish(tmp_path), describe(model), MADE, PACE):
        assert not list(tmp_path.glob(".run-*")) + list(tmp_path.glob(".gone-*"))


def test_a_node_that_sees_another_output_folder_says_so(job: Job, tmp_path: Path) -> None:
    elsewhere = replace(job, staging=tmp_path / "not" / "mounted")

    with pytest.raises(OutputError, match="Every node must find the output folder at the same path"):
        begin(elsewhere, 0)


def test_a_node_that_does_not_see_the_input_says_so(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tile\.png is not there\. Every node must find the input at the same path"):
        begin(replace(job, witness=tmp_path / "tile.png"), 0)


def test_a_range_that_killed_its_workers_is_given_up(job: Job) -> None:
    for _ in range(ATTEMPTS):
        begin(job, 0)

    with pytest.raises(ClusterError, match="4 workers died of tiles 0 to 70 of 'a'"):
        begin(job, 0)


def test_a_range_that_is_done_leaves_no_note(job: Job, model: Backbone) -> None:
    worker = Worker(job)
    worker._backbone = model

    outcome = pickle.loads(worker({"range": np.array([0])})["outcome"][0])

    assert (outcome.tiles, outcome.error) == (70, None)
    assert list(job.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (InputError("x.tar is damaged."), InputError, "x.tar is damaged."),
        (KeyError("slip"), ClusterError, "KeyError: 'slip'"),
    ],
)
def test_errors_travel_as_ours_and_say_where(error: Exception, kind: type[BackboneError], says: str) -> None:
    found = pickle.loads(pickle.dumps(told(error)))

    assert type(found) is kind
    assert str(found).startswith("On node ")
    assert str(found).endswith(says)


def test_what_goes_wrong_in_an_actor_is_its_answer(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(replace(job, request=request_for("test/tiny_vit", on_fallback="error", backend="onnx")))
    monkeypatch.chdir(job.output.folder)

    outcome = pickle.loads(worker({"range": np.array([0])})["outcome"][0])

    assert type(outcome.error).__name__ == "ArtifactNotFoundError"


def test_an_output_travels_with_its_staging_folder(job: Job) -> None:
    travelled: Output = pickle.loads(pickle.dumps(job)).output

    assert travelled == job.output
