"""The eager backbone in fp16 or bf16, without a second copy of its weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


# What torch says of an operation that has no kernel for a type; the second is linear algebra's.
_NO_KERNEL = ("not implemented for", "Low precision dtypes not supported")


class _WeightsAs(TorchFunctionMode):
    """Every torch function gets the module's own float32 tensors in `dtype`, rounded when they are used.

    What the module computes in between keeps its type, as it does after `module.to(dtype)`: a norm that widens its
    input to float32 goes on doing so.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        tensors = [*module.parameters(), *module.buffers()]
        self._weights = {id(tensor) for tensor in tensors if tensor.is_floating_point()}
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map(self._round, (tuple(args), dict(kwargs or {})))
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, NotImplementedError) and not any(words in str(error) for words in _NO_KERNEL):
                raise
        # torch has no kernel in 16 bits for this one on the CPU: what a GPU would give is the float32 result, rounded.
        args, kwargs = tree_map(self._widen, (args, kwargs))
        return tree_map(self._narrow, func(*args, **kwargs))

    def _round(self, value: Any) -> Any:
        return value.to(self._dtype) if id(value) in self._weights else value

    def _widen(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self._dtype else value

    def _narrow(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def run_in_half(module: nn.Module, images: Tensor, precision: str) -> list[Tensor]:
    """Return what `module.to(dtype)` gives for `images`, as float32; the module stays as it is.

    Where fp16 overflows the outputs are not finite: that is what eager gives.

    Args:
        module: A float32 module in evaluation mode, on the CPU.
        images: A float32 batch.
        precision: "fp16" or "bf16".
    """
    dtype = DTYPES[precision]
    with torch.no_grad(), _WeightsAs(module, dtype):
        output = module(images.to(dtype))
    outputs = list(output) if isinstance(output, list | tuple) else [output]
    return [tensor.float() for tensor in outputs]
