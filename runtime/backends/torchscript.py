"""Serving a TorchScript artifact: a graph without weights, and tensors in the model's shared weight data."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from runtime.backends import stored_weights
from runtime.backends.eager import TorchSession, images_of, torch_device
from runtime.backends.weight_table import TABLE
from runtime.errors import ArtifactCorruptError
from runtime.request import Request


def load(graph: Path, request: Request) -> TorchSession:
    """Return a session for `graph`, its weights memory-mapped.

    Raises:
        DeviceError: CUDA was asked for and torch cannot use it.
        ArtifactCorruptError: torch cannot read the graph, or a tensor lies outside its file.
    """
    device, reason = torch_device(request)
    try:
        module = _read_graph(graph)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ArtifactCorruptError(f"torch cannot load {graph}: {str(error).splitlines()[0].rstrip('.')}.") from error
    return TorchSession(module.to(device).eval(), device, reason, facts=images_of(request))


def _read_graph(graph: Path) -> Any:
    extra = {TABLE: ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=FutureWarning)
        module = torch.jit.load(str(graph), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    table = json.loads(extra[TABLE])
    stored = stored_weights.read(graph.parent, table)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in stored:
                tensor.data = stored[name]
    return module
