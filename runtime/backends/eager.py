"""Serving a backbone as eager PyTorch."""

from typing import Any

import torch
from torch import Tensor

from runtime import eager
from runtime.errors import DeviceError
from runtime.facts import Preprocessing
from runtime.providers import parse_device
from runtime.request import Request

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load(request: Request) -> "TorchSession":
    """Return a session for the eager backbone.

    Raises:
        DeviceError: CUDA was asked for and torch cannot use it.
        BackboneError: See `runtime.eager.build`.
    """
    device, reason = torch_device(request)
    built = eager.build(request)
    dtype = DTYPES[request.precision]
    return TorchSession(built.module.to(device, dtype), device, reason, facts=images_of(request), dtype=dtype)


def images_of(request: Request) -> Preprocessing | None:
    """Return how a session of torch has to normalise its images itself; `None` when they come normalised."""
    return request.spec.preprocessing if request.input == "uint8" else None


def torch_device(request: Request) -> tuple[str, str]:
    """Return the torch device to use, and why; torch's CPU threads are set when the caller named a number.

    Raises:
        DeviceError: CUDA was asked for and torch cannot use it.
    """
    device = request.device
    kind, index = parse_device(device)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    count = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cuda" and index >= count:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise DeviceError(
            f"device={device!r}: torch {torch.__version__} ({build}) sees {count} CUDA devices. Check the driver with "
            "nvidia-smi, or use device='cpu'."
        )
    if kind == "cpu":
        return "cpu", "device='cpu' was asked for"
    return (f"cuda:{index}", "torch can use CUDA") if count else ("cpu", "torch sees no CUDA device")


class TorchSession:
    """A torch module in eval mode: eager, TorchScript or compiled.

    Attributes:
        module: Takes images of `dtype`, [B, C, H, W].
        facts: With which uint8 images [B, H, W, C] are normalised first; `None` when they come normalised.
    """

    native = "torch"
    providers: tuple[str, ...] = ()

    def __init__(
        self,
        module: Any,
        device: str,
        reason: str,
        *,
        facts: Preprocessing | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module = module
        self.device = device
        self.reason = reason
        self._facts = facts
        self._dtype = dtype

    def run(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for a batch, float32 tensors on this session's device."""
        # The precision is the one asked for, also under somebody else's autocast (a trainer's mixed precision).
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            placed = images.to(self.device)
            ready = placed if self._facts is None else normalise(placed, self._facts)
            output = self.module(ready.to(self._dtype))
        outputs = output if isinstance(output, list | tuple) else [output]
        return [o.float() for o in outputs]


def normalise(images: Tensor, facts: Preprocessing) -> Tensor:
    """Return float32 [B, C, H, W] for uint8 images [B, H, W, C]; see `runtime.preprocess.normalise`."""
    mean, std = (torch.tensor(values, device=images.device) for values in (facts.mean, facts.std))
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
