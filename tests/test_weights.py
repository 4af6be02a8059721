"""Published weights: read without running code, loaded completely or not at all."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import Answer, Loopback, serving
from safetensors.torch import save_file
from tiny_backbones import FACTS, TINY
from torch import nn

from runtime import load_model, registry
from runtime.backbones.timm_vit import timm_vit
from runtime.download import cache_name
from runtime.errors import WeightsError
from runtime.facts import Url
from runtime.registry import register_model
from runtime.weights import LoudWeights, PublishedWeights, check_fit, read_checkpoint


@pytest.fixture(scope="module")
def running() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback


@pytest.fixture
def server(running: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A server that knows nothing yet, and an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.forget()
    return running


TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "checkpoint.pth"])
def test_tensors_are_read_from_either_kind_of_file(name: str, tmp_path: Path) -> None:
    save = save_file if name.endswith(".safetensors") else torch.save
    save(TENSORS, tmp_path / name)

    read = read_checkpoint(tmp_path / name)

    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], tensor) for key, tensor in TENSORS.items())


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    torch.save({**TENSORS, "bomb": Bomb(proof)}, tmp_path / "model.bin")

    with pytest.raises(WeightsError, match="Only tensors are loaded, never code"):
        read_checkpoint(tmp_path / "model.bin")

    assert not proof.exists()
    torch.load(tmp_path / "model.bin", weights_only=False)
    assert proof.exists()  # the file was armed


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "cut"], ids=["empty", "html", "cut"])
def test_a_file_that_is_no_checkpoint_is_named(name: str, content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        save_file(TENSORS, path) if name.endswith("safetensors") else torch.save(TENSORS, path)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_bytes(content)

    with pytest.raises(WeightsError, match=f"{path} is not a checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([TENSORS["weight"]], tmp_path / "list.pth")

    with pytest.raises(WeightsError, match=r"list\.pth holds a list, not a state dict"):
        read_checkpoint(tmp_path / "list.pth")


class Counting(nn.Module):
    """A linear map and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("index", torch.zeros(4, dtype=torch.int64))


def fitting() -> dict[str, torch.Tensor]:
    return {"linear.weight": torch.ones(2, 3), "linear.bias": torch.ones(2), "index": torch.arange(4)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"linear.bias": None}, "1 missing (linear.bias)"),
        ({"linear.extra": torch.ones(1)}, "1 unexpected (linear.extra)"),
        ({"linear.weight": torch.ones(3, 2)}, "1 of another shape (linear.weight (3, 2) instead of (2, 3))"),
        ({"linear.bias": None, "bias": torch.ones(2)}, "1 missing (linear.bias); 1 unexpected (bias)"),
        ({f"x{i}": torch.ones(1) for i in range(7)}, "7 unexpected (x0, x1, x2, x3, x4 and 2 more)"),
    ],
    ids=["missing", "unexpected", "shape", "renamed", "many"],
)
def test_tensors_that_do_not_fit_are_listed_and_nothing_is_loaded(
    change: dict[str, Any], problem: str, server: Loopback
) -> None:
    tensors = {key: tensor for key, tensor in (fitting() | change).items() if tensor is not None}
    server.answers["/misfit.pth"] = Answer(saved(tensors))
    made: list[Counting] = []

    def create() -> Counting:
        made.append(Counting())
        return made[-1]

    with pytest.raises(WeightsError) as caught:
        PublishedWeights(Url(f"{server.url}/misfit.pth"), "my/model").construct(create)

    url = f"{server.url}/misfit.pth"
    assert f"my/model: {cache_name(url)} of {url} does not fit the architecture: {problem}. " in str(caught.value)
    real = [model for model in made if not model.linear.weight.is_meta]
    assert [torch.equal(model.linear.weight, torch.ones(2, 3)) for model in real] == [False]


def test_tensors_that_fit_pass() -> None:
    check_fit(Counting(), fitting(), "file")


def saved(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def test_half_precision_becomes_float32_and_integers_stay(server: Loopback) -> None:
    tensors = fitting() | {"linear.weight": torch.full((2, 3), 0.5, dtype=torch.float16)}
    server.answers["/half.pth"] = Answer(saved(tensors))

    weights = PublishedWeights(Url(f"{server.url}/half.pth"), "my/model")
    model = weights.construct(Counting)

    assert torch.equal(model.linear.weight, torch.full((2, 3), 0.5))
    assert (model.index.dtype, model.index.tolist()) == (torch.int64, [0, 1, 2, 3])
    assert weights.revision == f"sha256:{hashlib.sha256(saved(tensors)).hexdigest()}"


@pytest.mark.parametrize("classifier", [{}, {"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}])
def test_a_pretrained_backbone_gives_the_numbers_of_its_published_weights(
    classifier: dict[str, torch.Tensor], server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = timm_vit("vit_tiny_patch16_224", LoudWeights(seed=5), None, 32, **TINY).eval()
    tensors = {key.removeprefix("model."): tensor for key, tensor in own.state_dict().items()}
    server.answers["/vit.pth"] = Answer(saved(tensors | classifier))
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))

    @register_model("test/published_vit", **(FACTS | {"source": Url(f"{server.url}/vit.pth")}))
    def build(weights: Any, out_indices: Any = None, image_size: Any = 32) -> nn.Module:
        return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size, **TINY)

    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = own(torch.from_numpy(images)).numpy()

    model = load_model("test/published_vit", weights="pretrained", backend="eager", device="cpu")

    np.testing.assert_allclose(model(images), expected, rtol=0, atol=1e-6)
    assert not model.module.training
    random = load_model("test/published_vit", weights="random", backend="eager", device="cpu")
    assert np.abs(random(images) - expected).max() > 0.1
