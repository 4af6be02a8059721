"""The eager backbone in float64, without a float64 copy of its weights or of unfolded volumes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
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
        return (_conv3d if func is torch.conv3d else func)(*args, **kwargs)


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _conv3d(
    volumes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """Return torch's conv3d, made one plane of the output at a time.

    In float64 torch unfolds its input, for a kernel of 3 x 3 x 3 to 27 times its size: 9 GB for 48 channels of 96^3.
    """
    padded = functional.pad(volumes, (0, 0, 0, 0, padding[0], padding[0]))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    starts = range(0, padded.shape[2] - reach + 1, stride[0])
    inside = (0, *padding[1:])
    planes = [
        torch.conv3d(padded[:, :, start : start + reach], weight, bias, stride, inside, dilation, groups)
        for start in starts
    ]
    return torch.cat(planes, dim=2)


def run_in_float64(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the outputs of `module` for `images`, every operation computed in float64."""
    with torch.no_grad(), _InFloat64():
        output = module(images.double())
    return list(output) if isinstance(output, list | tuple) else [output]
