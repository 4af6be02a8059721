"""ModelFromRegistry: a registered backbone as the `nn.Module` that eva's configurations name."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime import ModelFromRegistry, load_model
from runtime.errors import OptionError

EAGER = {"backend": "eager", "weights": "random"}


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["eager", "onnx", "torchscript"])
def test_a_model_from_the_registry_is_a_module_that_gives_tensors(backend: str, built: Path) -> None:
    options = {"backend": backend, "weights": "random", "artifacts": built, "on_fallback": "error"}
    expected = load_model("test/tiny_vit", **options)(images())

    model = ModelFromRegistry("test/tiny_vit", model_kwargs=options)
    inside = nn.Sequential(model, nn.Identity())
    maps = ModelFromRegistry("test/tiny_vit", {"out_indices": 1, **options}, {"out_indices": 2})(images())

    assert not model.training
    assert model.backbone.backend == backend
    torch.testing.assert_close(inside(images()), expected, rtol=0, atol=1e-6)
    assert not inside(images().requires_grad_()).requires_grad
    torch.testing.assert_close(copy.deepcopy(inside)(images()), expected, rtol=0, atol=1e-6)
    assert isinstance(maps, list)
    assert [(type(m), m.shape) for m in maps] == [(torch.Tensor, (2, 48, 4, 4))] * 2


def test_the_transforms_of_a_model_from_the_registry_get_its_output() -> None:
    plain = ModelFromRegistry("test/tiny_vit", EAGER)(images())

    model = ModelFromRegistry("test/tiny_vit", model_extra_kwargs=EAGER, transforms=lambda output: output.norm(dim=1))

    assert torch.equal(model(images()), plain.norm(dim=1))


def test_a_model_from_the_registry_refuses_what_load_model_refuses() -> None:
    with pytest.raises(OptionError, match="unknown keyword: dynamic_img_size"):
        ModelFromRegistry("test/tiny_vit", {"dynamic_img_size": True})
