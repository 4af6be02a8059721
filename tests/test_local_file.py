"""A checkpoint on this machine as the source of a backbone's weights."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_backbones import FACTS, TINY
from torch import nn

from exporters import pipeline, plan
from exporters.plan import Job
from runtime import LocalFile, load_model, register_model, registry
from runtime.artifacts import open_store
from runtime.backbones.timm_vit import timm_vit
from runtime.download import fetch
from runtime.errors import WeightsError
from runtime.manifest import Form
from runtime.request import Request
from runtime.weights import LoudWeights


def write_checkpoint(path: Path, seed: int) -> nn.Module:
    """Write the tensors of a tiny ViT, and return it."""
    module = timm_vit("vit_tiny_patch16_224", LoudWeights(seed), None, 32, **TINY).eval()
    tensors = {key.removeprefix("model."): tensor for key, tensor in module.state_dict().items()}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return module


def register(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))

    @register_model("test/local", **(FACTS | {"source": LocalFile(path)}))
    def build(weights: Any, out_indices: Any = None, image_size: Any = 32) -> nn.Module:
        return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size, **TINY)

    return "test/local"


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth", "vit.ckpt"])
def test_a_backbone_gives_the_numbers_of_its_local_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_checkpoint(tmp_path / name, seed=5)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)

    model = load_model(register(tmp_path / name, monkeypatch), backend="eager", device="cpu")

    with torch.no_grad():
        np.testing.assert_allclose(model(images), own(torch.from_numpy(images)).numpy(), rtol=0, atol=1e-6)


def test_its_revision_is_its_hash_and_it_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.bin").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    expected = (tmp_path / "own.bin", f"sha256:{hashlib.sha256(b'weights').hexdigest()}")

    for path in (tmp_path / "own.bin", str(tmp_path / "own.bin"), "own.bin", "~/own.bin"):
        assert fetch(LocalFile(path), "my/model", gated=False) == expected


def test_its_folder_is_not_told_and_it_can_be_pickled() -> None:
    source = LocalFile("/somewhere/private/own.bin")

    assert str(source) == "file:own.bin"
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    ("name", "why"), [("gone.bin", "No such file or directory"), ("folder", "Is a directory")], ids=["gone", "folder"]
)
def test_a_checkpoint_that_is_not_there_is_named(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(WeightsError) as error:
        fetch(LocalFile(tmp_path / name), "my/model", gated=False)

    assert str(error.value) == (
        f"my/model needs the checkpoint {tmp_path / name}, which cannot be read: {why}. "
        "Name a checkpoint file (.safetensors, or a PyTorch checkpoint) that this process may read."
    )


def test_manifests_record_its_name_and_hash_and_a_changed_file_makes_an_artifact_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = tmp_path / "private" / "vit.safetensors", tmp_path / "store"
    path.parent.mkdir()
    write_checkpoint(path, seed=1)
    spec = registry.find(register(path, monkeypatch))
    job = Job(Request(spec, artifacts=str(root)), (Form("onnx"),))

    [outcome] = pipeline.build(job)

    assert outcome.status == "built", outcome
    manifest = (root / "test/local/manifest.json").read_text()
    revision = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert '"file:vit.safetensors"' in manifest
    assert revision in manifest
    kept = [file for file in root.rglob("*") if file.is_file() and b"private" in file.read_bytes()]
    assert kept == []
    [step] = plan.plan(job, open_store(root))
    assert step.action == "skip"
    write_checkpoint(path, seed=2)
    [step] = plan.plan(job, open_store(root))
    assert step.action == "build"
    assert step.reason.startswith(f"stale: vit.safetensors {revision} -> sha256:")
    path.unlink()
    [step] = plan.plan(job, open_store(root))
    assert step.action == "skip"  # an artifact needs its checkpoint no more
