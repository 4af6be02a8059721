"""On an NVIDIA GPU: the eager CPU numbers on every backend, and the truth about where they were computed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime import load_model
from runtime.backbone import Backbone
from runtime.errors import DeviceError
from runtime.providers import CPU, CUDA

pytestmark = pytest.mark.gpu

NAME = "test/tiny_vit"
LIMIT = 1e-4  # relative root mean square


@pytest.fixture(autouse=True)
def torch_multiplies_in_full_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=["eager", "onnx", "torchscript"])
def options(request: pytest.FixtureRequest, built: Path) -> dict[str, Any]:
    return {"backend": request.param, "weights": "random", "artifacts": built, "on_fallback": "error"}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), dtype=np.float32)


def reference(out_indices: int | None = None) -> Backbone:
    return load_model(NAME, out_indices=out_indices, backend="eager", weights="random", device="cpu")


def distance(got: Any, expected: Any) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_embedding_on_a_gpu_is_the_eager_one_of_the_cpu(options: dict[str, Any], count: int) -> None:
    model = load_model(NAME, device="cuda", **options)

    assert distance(model(images(count)), reference()(images(count))) <= LIMIT
    assert model.device == "cuda:0"


def test_feature_maps_on_a_gpu_are_the_eager_ones_of_the_cpu(options: dict[str, Any]) -> None:
    maps = load_model(NAME, out_indices=2, device="cuda", **options)(images(3))

    for got, expected in zip(maps, reference(2)(images(3)), strict=True):
        assert distance(got, expected) <= LIMIT


def test_onnxruntime_really_runs_on_the_gpu(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cuda", **options)

    assert model.providers == ((CUDA, CPU) if model.backend == "onnx" else ())


def test_without_a_wish_the_gpu_is_taken(options: dict[str, Any]) -> None:
    model = load_model(NAME, **options)

    assert model.device == "cuda:0"
    assert model.info["device_reason"]


def test_a_wish_for_the_cpu_is_granted(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cpu", **options)

    assert model.device == "cpu"
    assert CUDA not in model.providers


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_a_tensor_comes_back_on_its_own_device(options: dict[str, Any], place: str) -> None:
    model = load_model(NAME, device="cuda", **options)

    embedding = model(torch.from_numpy(images(2)).to(place))

    assert embedding.device == torch.device(place)
    assert distance(embedding.cpu().numpy(), reference()(images(2))) <= LIMIT


def test_several_threads_share_a_gpu_backbone(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cuda", **options)
    batches = [images(5, seed) for seed in range(16)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model, batches))

    for got, batch in zip(together, batches, strict=True):
        assert distance(got, model(batch)) <= 1e-6


def test_a_gpu_that_is_not_there_is_an_error(options: dict[str, Any]) -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"

    with pytest.raises(DeviceError, match=beyond if options["backend"] != "onnx" else CUDA):
        load_model(NAME, device=beyond, **options)
