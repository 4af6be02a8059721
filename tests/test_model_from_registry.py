"""ModelFromRegistry: a registered backbone as the `nn.Module` that eva's configurations name."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runtime import ModelFromRegistry, load_model
from runtime.errors import InputError, OptionError, OutIndicesError, UnknownModelError

EAGER = {"backend": "eager", "weights": "random"}
BACKENDS = ("eager", "onnx", "torchscript")


def options(backend: str, built: Path) -> dict[str, Any]:
    return {"backend": backend, "weights": "random", "artifacts": str(built), "on_fallback": "error"}


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def embed_in_a_worker(model: ModelFromRegistry, batch: np.ndarray) -> tuple[str, np.ndarray]:
    return model.backbone.backend, model(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_from_the_registry_is_a_module_that_gives_tensors(backend: str, built: Path) -> None:
    given = options(backend, built)
    expected = load_model("test/tiny_vit", **given)(images())

    model = ModelFromRegistry("test/tiny_vit", model_kwargs=given)
    inside = nn.Sequential(model, nn.Identity())
    maps = ModelFromRegistry("test/tiny_vit", {"out_indices": 1, **given}, {"out_indices": 2})(images())

    assert not model.training
    assert model.backbone.backend == backend
    torch.testing.assert_close(inside(images()), expected, rtol=0, atol=1e-6)
    assert not inside(images().requires_grad_()).requires_grad
    torch.testing.assert_close(copy.deepcopy(inside)(images()), expected, rtol=0, atol=1e-6)
    assert isinstance(maps, list)
    assert [(type(m), m.shape) for m in maps] == [(torch.Tensor, (2, 48, 4, 4))] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_serves_it_has_nothing_to_train_to_save_or_to_move(backend: str, built: Path) -> None:
    model = ModelFromRegistry("test/tiny_vit", options(backend, built))
    before = model(images())

    model.train().requires_grad_().to(torch.float16)

    assert model.training
    assert [*model.parameters(), *model.buffers(), *model.children()] == []
    assert model.state_dict() == {}
    assert torch.equal(model(images()), before)
    model.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"model.blocks.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_it_gives_depends_neither_on_inference_mode_nor_on_autocast(backend: str, built: Path) -> None:
    model = ModelFromRegistry("test/tiny_vit", {"out_indices": 2, **options(backend, built)})
    expected = model(images())

    with torch.inference_mode():
        inferred = model(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(images())

    for maps in (inferred, mixed):
        assert isinstance(maps, list)
        assert [m.dtype for m in maps] == [torch.float32] * 2
        assert all(map(torch.equal, maps, expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deep_copy_shares_the_session_and_nothing_else(backend: str, built: Path) -> None:
    model = nn.ModuleDict(
        {"encoder": ModelFromRegistry("test/tiny_vit", options(backend, built), transforms=nn.ReLU())}
    )
    model["twice"] = model["encoder"]

    twin = copy.deepcopy(model)

    assert twin["encoder"] is twin["twice"] is not model["encoder"]
    assert twin["encoder"].backbone is model["encoder"].backbone
    assert twin["encoder"].transforms is not model["encoder"].transforms
    assert torch.equal(twin["encoder"](images()), model["encoder"](images()))
    twin.train()
    assert not model["encoder"].training


def test_a_copy_of_a_backbone_drawn_without_a_seed_has_its_weights() -> None:
    model = ModelFromRegistry("test/unseeded", {"backend": "eager"})
    torch.rand(1)

    assert torch.equal(copy.deepcopy(model)(images()), model(images()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pickle_opens_a_session_of_its_own(backend: str, built: Path) -> None:
    model = ModelFromRegistry("test/tiny_vit", options(backend, built))

    twin = pickle.loads(pickle.dumps(model))

    assert twin.backbone is not model.backbone
    assert (twin.training, twin.backbone.backend) == (False, backend)
    torch.testing.assert_close(twin(images()), model(images()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "onnx"])
def test_it_can_be_sent_to_a_spawned_worker(backend: str, built: Path) -> None:
    model = ModelFromRegistry("test/tiny_vit", options(backend, built))

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        served_by, embedding = pool.submit(embed_in_a_worker, model, images().numpy()).result(timeout=500)

    assert served_by == backend
    np.testing.assert_allclose(embedding, model(images()).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["test/tiny_vit", "test/own", "test/unseeded"])
def test_loading_leaves_the_random_state_alone(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)

    torch.manual_seed(7)
    ModelFromRegistry(name, {"backend": "eager"} if name != "test/tiny_vit" else EAGER)

    assert torch.equal(torch.rand(3), expected)


def test_the_transforms_of_a_model_from_the_registry_get_its_output() -> None:
    plain = ModelFromRegistry("test/tiny_vit", EAGER)(images())

    model = ModelFromRegistry("test/tiny_vit", model_extra_kwargs=EAGER, transforms=lambda output: output.norm(dim=1))

    assert torch.equal(model(images()), plain.norm(dim=1))


@pytest.mark.parametrize(
    ("name", "kwargs", "extra", "error", "said"),
    [
        ("test/tiny_vit", {"dynamic_img_size": True}, None, OptionError, "unknown keyword: dynamic_img_size"),
        ("test/tiny_vit", None, {"hf_token": "x"}, OptionError, "unknown keyword: hf_token"),
        ("test/tiny_vit", {"backend": "ONNX"}, None, OptionError, "backend='ONNX' is none of 'auto', 'onnx'"),
        ("test/tiny_vit", {"out_indices": "(-4, -2)"}, None, OutIndicesError, r"a list is written \[-4, -2\]"),
        ("test/tiny_vit", "backend=onnx", None, OptionError, r"model_kwargs='backend=onnx' must be a dict"),
        ("test/tiny_vit", EAGER, ["seed"], OptionError, r"In YAML: model_extra_kwargs: \{backend: onnx\}"),
        ("test/tiny_vitt", EAGER, None, UnknownModelError, "Nearest: test/tiny_vit"),
    ],
)
def test_a_model_from_the_registry_refuses_what_load_model_refuses(
    name: str, kwargs: Any, extra: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        ModelFromRegistry(name, kwargs, extra)


def test_a_batch_of_a_trainer_in_half_precision_is_refused() -> None:
    with pytest.raises(InputError, match="convert it to float32"):
        ModelFromRegistry("test/tiny_vit", EAGER)(images().to(torch.bfloat16))


def test_its_repr_says_what_serves(built: Path) -> None:
    model = nn.Sequential(ModelFromRegistry("test/tiny_vit", options("onnx", built)))

    assert "ModelFromRegistry(Backbone('test/tiny_vit', backend='onnx', device='cpu'))" in repr(model)
