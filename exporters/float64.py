"""The eager backbone in float64, without a float64 copy of its weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class _InFloat64(TorchFunctionMode):
    """Every torch function gets its float32 tensors as float64: one layer's weights are widened at a time."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map(_widen, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def run_in_float64(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the outputs of `module` for `images`, every operation computed in float64."""
    with torch.no_grad(), _InFloat64():
        output = module(images.double())
    return list(output) if isinstance(output, list | tuple) else [output]
