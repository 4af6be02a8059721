"""What a store holds after a further build: the same bytes for the same inputs, each weight once for all variants."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builds
import pytest
from conftest import FORMATS, FORMS, request_for

from exporters import workers
from exporters.plan import Job, Outcome
from runtime import eager, load_model
from runtime.artifacts import Store
from runtime.machine import cpu_count


class Silent:
    def started(self, job: Job) -> None: ...

    def stage(self, job: Job, stage: str) -> None: ...

    def finished(self, job: Job, outcomes: list[Outcome]) -> None: ...


def job(name: str, root: Path, force: bool = False, **options: Any) -> Job:
    request = request_for(name, weights="random", artifacts=str(root), **options)
    # As many threads as the command gives: sums of another order would differ in their last bits.
    return Job(request, FORMS, force=force, threads=cpu_count(), imports=("tiny_backbones",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores that were built by a process of their own each.

    `first`, `second` and `forced` by the same build: as the command does it, in another process, and again over it.
    `small` holds an embedding, `grown` the maps that a later process added to it.
    """
    made = tmp_path_factory.mktemp("stores")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(workers.run, [job("test/tiny_vit", made / "first", out_indices=2)], Silent())
        outcomes = [
            builds.build(job("test/tiny_vit", made / "second", out_indices=2)),
            builds.build(job("test/wide_vit", made / "small")),
        ]
        shutil.copytree(made / "second", made / "forced")
        shutil.copytree(made / "small", made / "grown")
        outcomes += [
            builds.build(job("test/tiny_vit", made / "forced", out_indices=2, force=True)),
            builds.build(job("test/wide_vit", made / "grown", out_indices=2)),
            first.result(),
        ]
    for built in outcomes:
        assert isinstance(built, list), built
        assert [o.status for o in built] == ["built", "built"], built
    return made


def files(root: Path, model: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / model).iterdir()}


def size(root: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in (root / "test/wide_vit").glob(pattern))


@pytest.mark.parametrize("other", ["second", "forced"])
def test_the_same_build_gives_the_same_bytes(folder: Path, other: str) -> None:
    first, again = files(folder / "first", "test/tiny_vit"), files(folder / other, "test/tiny_vit")

    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert {name.rsplit(".", 1)[1] for name in first} == {"onnx", "torchscript", "data", "json"}


def test_the_forced_build_did_build(folder: Path) -> None:
    [graph] = (folder / "forced/test/tiny_vit").glob("*.onnx")
    copied = (folder / "second/test/tiny_vit" / graph.name).stat()

    assert graph.stat().st_mtime_ns > copied.st_mtime_ns  # copytree keeps the time of what it copies


def test_weights_are_stored_once_for_both_formats(folder: Path) -> None:
    module = eager.build(request_for("test/wide_vit", weights="random")).module
    parameters = sum(p.numel() * 4 for p in module.parameters())

    assert parameters > 20e6
    # The ONNX graph's table of position embeddings is its own: the class token is added to it beforehand.
    table = next(p.numel() * 4 for name, p in module.named_parameters() if name.endswith("pos_embed"))
    assert parameters <= size(folder / "small", "*.data") <= 1.001 * parameters + table


def test_a_further_variant_by_a_later_process_adds_little_more_than_its_graph(folder: Path) -> None:
    before, after = size(folder / "small"), size(folder / "grown")

    assert len(Store(folder / "grown").read("test/wide_vit").artifacts) == 4
    assert before < after < 1.02 * before
    assert size(folder / "grown", "*.data") == size(folder / "small", "*.data")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("out_indices", [None, 2])
def test_variants_that_share_weights_are_whole(folder: Path, format: str, out_indices: int | None) -> None:
    options: dict[str, Any] = {"out_indices": out_indices, "weights": "random", "on_fallback": "error"}

    with load_model("test/wide_vit", backend=format, artifacts=folder / "grown", verify="full", **options) as model:
        assert model.backend == format
