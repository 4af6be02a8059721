"""Checkpoints as publishers lay them out, read by the registered builders at a small size."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from runtime import registry
from runtime.loud import draw_loud
from runtime.weights import Adapt, check_fit

SMALL_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL_SWIN = {"depths": (2, 1, 1, 2), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
SMALL_RESNET = {"layers": (1, 1, 2, 1)}


class Reading:
    """Fills the module from a checkpoint, as published weights do."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.checkpoint = checkpoint

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:
        module = create()
        assert adapt is not None
        tensors = adapt(dict(self.checkpoint), module)
        check_fit(module, tensors, "the checkpoint")
        module.load_state_dict(tensors, strict=True)
        return module


def shrink(monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> None:
    """Make timm's architectures small while a test lasts."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: create(name, **(kwargs | sizes)))


def run(name: str, checkpoint: dict[str, Any], images: Tensor, **options: Any) -> Any:
    with torch.no_grad():
        return registry.find(name).build(weights=Reading(checkpoint), **options).eval().to(images.dtype)(images)


def loud(module: nn.Module) -> Any:
    draw_loud(module, 0)
    return module.eval()


def under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def close(got: Tensor, expected: Tensor) -> None:
    assert expected.std(0).mean() > 1e-4, "the images must tell"
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
