"""Serving a backbone as eager PyTorch."""

from typing import Any

import torch
from torch import nn

from runtime import eager
from runtime.errors import DeviceError
from runtime.providers import parse_device
from runtime.request import Request


def load(request: Request) -> "TorchSession":
    """Return a session for the eager backbone.

    Raises:
        DeviceError: CUDA was asked for and torch cannot use it.
        BackboneError: See `runtime.eager.build`.
    """
    device, reason = torch_device(request)
    built = eager.build(request)
    return TorchSession(built.module.to(device), device, reason, built.revision)


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
    """A torch module (eager or TorchScript) in eval mode."""

    native = "torch"
    providers: tuple[str, ...] = ()

    def __init__(self, module: nn.Module, device: str, reason: str, revision: str | None = None) -> None:
        self.module = module
        self.device = device
        self.reason = reason
        self.revision = revision

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a float32 batch [B, C, H, W], as tensors on this session's device."""
        with torch.no_grad():
            output = self.module(images.to(self.device))
        return list(output) if isinstance(output, list | tuple) else [output]
