"""The serving contract: the same expectations on every backend."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime import load_model

BACKENDS = ["eager", "onnx", "openvino", "torchscript"]


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


@pytest.fixture(params=BACKENDS)
def options(request: pytest.FixtureRequest, built: Path) -> dict:
    return {"backend": request.param, "weights": "random", "artifacts": built, "on_fallback": "error"}


def test_the_embedding_is_one_array(options: dict) -> None:
    model = load_model("test/tiny_vit", **options)

    embedding = model(images())

    assert isinstance(embedding, np.ndarray)
    assert embedding.shape == (2, 48)
    assert embedding.dtype == np.float32
    assert model.backend == options["backend"]
    assert model.device == "cpu" or model.device.startswith("cuda")


def test_feature_maps_are_a_list(options: dict) -> None:
    maps = load_model("test/tiny_vit", out_indices=2, **options)(images())

    assert isinstance(maps, list)
    assert [m.shape for m in maps] == [(2, 48, 4, 4)] * 2


@pytest.mark.parametrize("spelling", [2, (-1, -2), [1, 2], (-2, 2)])
def test_equal_requests_get_equal_maps(options: dict, spelling: object) -> None:
    expected = load_model("test/tiny_vit", out_indices=2, backend="eager", weights="random")(images())

    got = load_model("test/tiny_vit", out_indices=spelling, **options)(images())

    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 17])
def test_every_backend_gives_the_eager_numbers(options: dict, count: int) -> None:
    expected = load_model("test/tiny_vit", backend="eager", weights="random")(images(count))

    got = load_model("test/tiny_vit", **options)(images(count))

    assert np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()) < 1e-5


def test_a_tensor_gives_a_tensor(options: dict) -> None:
    model = load_model("test/tiny_vit", **options)

    output = model(torch.from_numpy(images()))

    assert isinstance(output, torch.Tensor)
    np.testing.assert_allclose(output.numpy(), model(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_gives_the_same_numbers(options: dict, clone: object) -> None:
    model = load_model("test/tiny_vit", **options)

    np.testing.assert_array_equal(clone(model)(images()), model(images()))  # type: ignore[operator]
