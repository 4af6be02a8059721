"""A store that cannot be written or was damaged on disk: nothing is lost, and the next build mends it."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import builds
import numpy as np
import pytest
import tiny_backbones
from conftest import FORMATS, FORMS, request_for

from exporters import pipeline
from exporters.parity import relative_rms
from exporters.plan import Job
from runtime import load_model, publishing
from runtime.artifacts import MANIFEST, Store
from runtime.errors import BuildError, StoreError
from runtime.manifest import Artifact, Form

NAME = "test/two_stages"


def job(root: Path, out_indices: Any = None, forms: tuple[Form, ...] = FORMS, **options: Any) -> Job:
    force = options.pop("force", False)
    return Job(request_for(NAME, artifacts=str(root), out_indices=out_indices, **options), forms, force=force)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("older")
    assert [o.status for o in pipeline.build(job(root))] == ["built", "built"]
    return root


@pytest.fixture
def root(older: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(older, tmp_path / "store"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


def assert_served(root: Path, out_indices: Any = None) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    expected = load_model(NAME, backend="eager", out_indices=out_indices)(images)
    for format in FORMATS:
        options = {"artifacts": root, "out_indices": out_indices, "on_fallback": "error", "verify": "full"}
        for g, e in zip(load_model(NAME, backend=format, **options)(images), expected, strict=True):
            assert relative_rms(e, g) < 1e-5


def full_disk(limit: int) -> None:
    """Let every write fail that makes a file longer than this, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize(
    ("what", "forms", "options"),
    [
        ("weights", FORMS, {"weights": "random"}),
        ("onnx graph", (Form("onnx"),), {"out_indices": 1}),
        ("torchscript graph", (Form("torchscript"),), {"out_indices": 1}),
        ("manifest", (Form("onnx"),), {"out_indices": 1}),
    ],
)
def test_a_full_disk_is_told_and_loses_nothing(
    what: str, forms: tuple[Form, ...], options: dict[str, Any], root: Path
) -> None:
    before = contents(root)
    limit = len(before[f"{NAME}/{MANIFEST}"]) + 100 if what == "manifest" else 500

    outcomes = builds.build(job(root, forms=forms, **options), partial(full_disk, limit))

    assert isinstance(outcomes, list), outcomes
    assert [o.status for o in outcomes] == ["failed"] * len(forms)
    for outcome in outcomes:
        assert f"{root} cannot be written: File too large" in outcome.note
        assert "What was published before is untouched." in outcome.note
    assert contents(root) == before


def test_a_first_build_that_cannot_be_published_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publishing, "replace_text", no_space)

    [outcome] = pipeline.build(job(tmp_path, forms=(Form("onnx"),)))

    assert outcome.status == "failed"
    assert f"{tmp_path} cannot be written: No space left on device. What" in outcome.note
    assert not (tmp_path / NAME).parent.exists()


def test_one_format_that_does_not_fit_does_not_hold_up_the_other(root: Path) -> None:
    limit = (root / NAME / MANIFEST).stat().st_size + 200  # the graph's size varies by the process that traced it
    assert file_of(root, "onnx").stat().st_size < limit < file_of(root, "torchscript").stat().st_size - 500
    cut(file_of(root, "onnx"))

    outcomes = builds.build(job(root, force=True), partial(full_disk, limit))

    assert isinstance(outcomes, list), outcomes
    assert {o.form.format: o.status for o in outcomes} == {"onnx": "built", "torchscript": "failed"}
    assert_served(root)


@pytest.mark.parametrize("below", ["", "further/down"])
def test_a_folder_that_cannot_be_written_is_told(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / below

    with pytest.raises(StoreError, match=r"cannot be written: (Not a directory|File exists) .* choose another folder"):
        pipeline.build(job(root))

    assert contents(tmp_path) == {"file": b"not a folder"}


def test_a_file_that_the_backbone_misses_is_not_blamed_on_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Any) -> None:
        (tmp_path / "weights.pth").read_bytes()

    monkeypatch.setattr(tiny_backbones, "TwoStages", missing)

    with pytest.raises(BuildError, match=r"test/two_stages could not be loaded: FileNotFoundError: .*weights\.pth"):
        pipeline.build(job(tmp_path))


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def file_of(root: Path, kind: str) -> Path:
    artifacts: dict[str, Artifact] = {a.key.format: a for a in Store(root).read(NAME).artifacts}
    return root / NAME / (artifacts["onnx"].files[1].name if kind == "data" else artifacts[kind].graph.name)


@pytest.mark.parametrize("damage", [alter, cut, Path.unlink])
@pytest.mark.parametrize("kind", ["data", "onnx", "torchscript"])
def test_building_again_mends_a_damaged_file(damage: Callable[[Path], None], kind: str, root: Path) -> None:
    before = contents(root)
    damage(file_of(root, kind))

    # Without --force only sizes are looked at.
    outcomes = pipeline.build(job(root, force=damage is alter))

    assert "built" in {o.status for o in outcomes}, outcomes
    assert {o.status for o in outcomes} <= {"built", "skipped"}, outcomes
    assert sorted(Path(name).suffix for name in contents(root)) == sorted(Path(name).suffix for name in before)
    assert_served(root)


def test_data_altered_on_disk_is_written_again_and_not_reused(root: Path) -> None:
    alter(file_of(root, "data"))

    outcomes = pipeline.build(job(root, out_indices=2))

    assert [o.status for o in outcomes] == ["built", "built"], outcomes
    assert_served(root, out_indices=2)
    assert_served(root)  # it reads the very same weights, so it is mended, too
