"""Which GPU and which stream a thread gives its work to in torch; on CPUs there is nothing to choose."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which `device` is torch's current one: a tensor of another GPU cannot be handed on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def stream_of_caller(device: torch.device) -> Any:
    """Return the stream to which this thread gives work for `device`; `None` where there are no streams."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def on_stream(stream: Any) -> AbstractContextManager[Any]:
    """Return a context in which this thread gives its work to `stream`, on the GPU of that stream."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def wait_for_caller(device: torch.device) -> None:
    """Wait until everything is done that this thread's current stream has queued."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
