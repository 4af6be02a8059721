"""Serving a package compiled by AOTInductor, its weights in the model's shared weight data."""

import json
import platform
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.backends import stored_weights
from runtime.backends.eager import images_of, normalise, torch_device
from runtime.backends.pt2_package import NEEDS, Machine, obstacle
from runtime.backends.torch_streams import on_device
from runtime.backends.weight_table import TABLE
from runtime.errors import ArtifactCorruptError, DeviceError
from runtime.facts import Preprocessing
from runtime.request import Request


def load(graph: Path, request: Request) -> "Pt2Session":
    """Return a session for the package `graph`, its weights memory-mapped.

    Raises:
        DeviceError: CUDA was asked for and torch cannot use it, or the package was compiled for another machine.
        ArtifactCorruptError: torch cannot read the package, or a tensor lies outside its file.
    """
    device, reason = torch_device(request)
    here = machine(device)
    made_with = here.torch
    try:
        needed = Machine(**json.loads(_record(graph, NEEDS)))
        made_with = needed.torch
        if problem := obstacle(needed, here):
            raise DeviceError(
                f"backend='pt2': {graph} cannot run here: {problem}. Build it on a machine like this one."
            )
        weights = _weights(graph, device)
        return Pt2Session(_open(graph, device, weights), device, reason, weights, images_of(request))
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, DeviceError):
            raise
        other = f" It was compiled with torch {made_with}, this is {here.torch}." if made_with != here.torch else ""
        raise ArtifactCorruptError(f"torch cannot load {graph}: {_first_line(error)}.{other}") from error


def machine(device: str) -> Machine:
    """Return what this machine is to compiled code that runs on `device`."""
    kind = torch.device(device).type
    gpu = ".".join(map(str, torch.cuda.get_device_capability(device))) if kind == "cuda" else ""
    instructions = torch.backends.cpu.get_cpu_capability()
    return Machine(kind, f"{platform.system()} {platform.machine()}", instructions, gpu, torch.__version__)


def _record(graph: Path, name: str) -> bytes:
    with zipfile.ZipFile(graph) as archive:
        found = next((record for record in archive.namelist() if record.endswith(f"/extra/{name}")), None)
        if found is None:
            raise ValueError(f"it has no record {name}")
        return archive.read(found)


def _weights(graph: Path, device: str) -> dict[str, Tensor]:
    stored = stored_weights.read(graph.parent, json.loads(_record(graph, TABLE)))
    # Compiled code takes the layout of its weights for granted: what is stored transposed is turned, and so copied.
    return {name: tensor.to(device).contiguous() for name, tensor in stored.items()}


def _open(graph: Path, device: str, weights: dict[str, Tensor]) -> Any:
    # Straight, for torch._inductor.aoti_load_package would import the compiler first.
    index = torch.device(device).index
    loader = torch._C._aoti.AOTIModelPackageLoader(str(graph), "model", False, 1, -1 if index is None else index)
    missing = sorted(set(loader.get_constant_fqns()) - set(weights))
    if missing:
        raise ValueError(f"its table lacks the weights {', '.join(missing[:3])}")
    loader.load_constants(weights, False, True, True)
    return loader


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Pt2Session:
    """A compiled package; `run` may be called from several threads at once, and runs one batch at a time."""

    native = "torch"
    providers: tuple[str, ...] = ()

    def __init__(
        self, loader: Any, device: str, reason: str, weights: dict[str, Tensor], facts: Preprocessing | None
    ) -> None:
        self._loader = loader
        self._weights = weights  # the compiled code only points to them
        self._facts = facts
        self.device = device
        self.reason = reason

    def run(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for a batch, float32 tensors on this session's device."""
        with torch.no_grad(), on_device(torch.device(self.device)):  # compiled code works on the current GPU's stream
            placed = images.to(self.device)
            ready = placed if self._facts is None else normalise(placed, self._facts)
            # Compiled code reads its input as contiguous, whatever it is.
            return list(self._loader.boxed_run([ready.contiguous()]))
