"""Giving memory back while a build goes on."""

import contextlib
import ctypes
import gc
from typing import Any


def empty(module: Any) -> None:
    """Free the weights of a torch module, whoever still holds one of its tensors: it cannot be run any more.

    Of the exporter's own caches some live as long as the process, such as the rewrite rules' last match.
    """
    import torch

    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
    give_back()


def give_back() -> None:
    """Return freed memory to the system: glibc keeps blocks below 32 MB, which is most of a giant's weights."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
