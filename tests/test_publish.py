"""Publishing: whatever kills a build, and whoever else builds, the store serves what it served before."""

import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import builds
import numpy as np
import onnx
import pytest
import tiny_backbones
import torch
from conftest import FORMATS, FORMS, request_for

from exporters import pipeline
from exporters.parity import relative_rms
from exporters.plan import Job
from runtime import load_model, publishing
from runtime.artifacts import MANIFEST, STAGING, Store
from runtime.manifest import Form

NAME = "test/two_stages"
STAGES = [
    "waiting for the model's lock",
    "loading eager",
    "eager reference",
    "exporting onnx",
    "exporting torchscript",
    "verifying onnx for cpu, fp32",
    "verifying onnx for cpu, fp32 by openvino",
    "publishing onnx for cpu, fp32",
    "verifying torchscript, fp32",
    "publishing torchscript, fp32",
]
EMBEDDING, LAST, BOTH = None, (-1,), (-2, -1)


def job(root: Path, out_indices: Any = None, forms: tuple[Form, ...] = FORMS, **facts: Any) -> Job:
    return Job(request_for(NAME, artifacts=str(root), out_indices=out_indices), forms, **facts)


def note_stages(path: Path) -> Callable[[str], None]:
    def report(stage: str) -> None:
        with path.open("a") as file:
            print(stage, file=file)

    return report


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the embedding in both formats, and `stages.txt`, what its build reported."""
    root = tmp_path_factory.mktemp("older")
    outcomes = builds.build(job(root), partial(note_stages, root / "stages.txt"))
    assert isinstance(outcomes, list), outcomes
    assert [o.status for o in outcomes] == ["built", "built"]
    return root


@pytest.fixture
def root(older: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(older, tmp_path / "store"))


def published(root: Path) -> set[tuple[Any, str]]:
    return {(a.key.out_indices, a.key.format) for a in Store(root).read(NAME).artifacts}


def in_both(*variants: Any) -> set[tuple[Any, str]]:
    return {(out_indices, format) for out_indices in variants for format in FORMATS}


def assert_whole(root: Path, expected: Iterable[tuple[Any, str]]) -> None:
    """Exactly these are published, and served byte for byte as published with the eager numbers."""
    assert published(root) == set(expected)
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    for out_indices, format in expected:
        options = {"artifacts": root, "out_indices": out_indices, "on_fallback": "error", "verify": "full"}
        served = load_model(NAME, backend=format, **options)(images)
        for g, e in zip(served, load_model(NAME, backend="eager", out_indices=out_indices)(images), strict=True):
            assert relative_rms(e, g) < 1e-5


def assert_tidy(root: Path) -> None:
    """No file but the listed ones, each with one name only."""
    folder = root / NAME
    listed = {file.name for a in Store(root).read(NAME).artifacts for file in a.files}
    assert {path.name for path in folder.iterdir()} == {*listed, MANIFEST}
    assert {path.stat().st_nlink for path in folder.iterdir()} == {1}
    assert list((root / STAGING).iterdir()) == []


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / NAME).iterdir()}


def test_these_are_all_the_stages(older: Path) -> None:
    assert (older / "stages.txt").read_text().splitlines() == STAGES


def die_at(stage: str) -> Callable[[str], None]:
    return lambda reported: builds.die() if reported == stage else None


@pytest.mark.parametrize("stage", STAGES)
def test_a_build_killed_at_any_stage_leaves_what_was_published(stage: str, root: Path) -> None:
    before = contents(root)

    assert builds.build(job(root, LAST), partial(die_at, stage)) is SIGKILL

    done = {(LAST, "onnx")} if stage in STAGES[-2:] else set()
    assert_whole(root, in_both(EMBEDDING) | done)
    with publishing.workspace(Store(root), NAME):  # the next build cleans up before anything else
        assert_whole(root, in_both(EMBEDDING) | done)
    assert_tidy(root)
    if not done:
        assert contents(root) == before


def die_before_renaming(suffix: str) -> None:
    replace = Path.replace

    def replace_or_die(path: Path, to: Path) -> Path:
        if path.name == f"{to.name}.part" and to.suffix == suffix:
            builds.die()
        return replace(path, to)

    Path.replace = replace_or_die  # type: ignore[method-assign,assignment]


def die_after_the_first_file() -> None:
    put = publishing._put
    publishing._put = lambda *where: (put(*where), builds.die())  # type: ignore[assignment]


def die_before_old_files_are_removed() -> None:
    write = publishing.replace_text
    publishing.replace_text = lambda *what: (write(*what), builds.die())  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("prepare", "done"),
    [
        (partial(die_before_renaming, ".onnx"), set()),
        (die_after_the_first_file, set()),
        (partial(die_before_renaming, ".json"), set()),
        (die_before_old_files_are_removed, {(LAST, "onnx")}),
    ],
)
def test_a_build_killed_while_publishing_leaves_what_was_published(
    prepare: Callable[[], None], done: set[tuple[Any, str]], root: Path
) -> None:
    before = contents(root).keys()

    assert builds.build(job(root, LAST), prepare) is SIGKILL

    assert contents(root).keys() > before  # new files had come to their place
    assert_whole(root, in_both(EMBEDDING) | done)
    outcomes = pipeline.build(job(root, LAST))
    assert {o.form.format: o.status for o in outcomes} == {
        "onnx": "skipped" if done else "built",
        "torchscript": "built",
    }
    assert_whole(root, in_both(EMBEDDING, LAST))
    assert_tidy(root)


def touch_when_loading(path: Path) -> Callable[[str], None]:
    return lambda stage: path.touch() if stage == "loading eager" else None


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def test_builds_of_one_model_at_once_all_end_well(root: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    first = builds.start(job(root, LAST), partial(touch_when_loading, begun))
    others = [builds.start(job(root, which), partial(wait_for, begun)) for which in (BOTH, LAST)]

    results = [[o.status for o in child.result()] for child in (first, *others)]

    assert results == [["built", "built"], ["built", "built"], ["skipped", "skipped"]]
    assert_whole(root, in_both(EMBEDDING, LAST, BOTH))
    assert_tidy(root)


def test_what_is_published_satisfies_onnx_itself(root: Path) -> None:
    assert_tidy(root)
    [graph] = (root / NAME).glob("*.onnx")

    onnx.checker.check_model(onnx.load(graph))  # refuses external data with several hard links
    onnx.checker.check_model(graph, full_check=True)


def test_files_that_no_build_wrote_stay(root: Path) -> None:
    checkpoint = root / NAME / "pytorch_model.bin"
    checkpoint.write_bytes(b"precious")

    pipeline.build(job(root, force=True))

    assert checkpoint.read_bytes() == b"precious"


def test_a_replacing_build_removes_the_old_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Retrained(tiny_backbones.TwoStages):
        def __init__(self, out_indices: Any) -> None:
            super().__init__(out_indices)
            with torch.no_grad():
                self.body.weight.mul_(2)

    monkeypatch.setattr(tiny_backbones, "TwoStages", Retrained)
    before = contents(root)

    outcomes = pipeline.build(job(root, force=True))

    assert [o.status for o in outcomes] == ["built", "built"]
    assert_tidy(root)
    assert_whole(root, in_both(EMBEDDING))
    kept = before.keys() & contents(root).keys()
    assert {name.split(".")[0] for name in kept} == {"manifest", "weights"}  # the stem's weights are still read
    assert {name.split(".")[0] for name in before.keys() - kept} == {"embedding"}
