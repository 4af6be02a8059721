"""Trying a library in a process of its own: one that crashes, hangs or prints takes nobody along.

`python -m runtime.doctor.probes NAME` prints what it found out as one line of JSON, its last.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.machine import installed
from runtime.providers import CPU, CUDA

SECONDS = 120
# An ONNX file: one convolution, which is cuDNN's, and one matrix product, which is cuBLAS's.
GRAPH = base64.b64decode(
    "CAo6hgEKDwoBeAoBdxIBeSIEQ29udgoRCgF5CgF5EgF6IgZNYXRNdWwSBXByb2JlKh8IAQgBCAIIAhABIhAAAIA/AAAAAAAAAAAAAIA/QgF3"
    "WhsKAXgSFgoUCAESEAoCCAEKAggBCgIIAwoCCANiGwoBehIWChQIARIQCgIIAQoCCAEKAggCCgIIAkIECgAQEg=="
)


@dataclass(frozen=True)
class Probed:
    """What a probe found out.

    Attributes:
        told: Its JSON.
        messages: What the library printed.
        trouble: Why it told nothing; `None` if it did.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    messages: str = ""
    trouble: str | None = None


def probe(name: str, *, seconds: float = SECONDS) -> Probed:
    """Return what the probe `name` finds out in a process of its own."""
    command = [sys.executable, "-m", "runtime.doctor.probes", name]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return Probed(trouble=f"it gave no answer within {seconds:g} s")
    except OSError as error:
        return Probed(trouble=f"no process could be started: {error.strerror}")
    *printed, last = ran.stdout.splitlines() or [""]
    messages = "\n".join([ran.stderr, *printed])
    try:
        return Probed(json.loads(last), messages)
    except ValueError:
        return Probed({}, messages, how_it_ended(ran.returncode, ran.stderr))


def how_it_ended(code: int, messages: str) -> str:
    """Return why a process told nothing, with the last line that it printed."""
    ended = f"it was killed by signal {-code}" if code < 0 else f"it ended with status {code}"
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    return f"{ended}: {lines[-1]}" if lines else ended


def onnxruntime_probe() -> dict[str, Any]:
    """Return the version, the providers it was built with, and those of a session that was asked for CUDA and ran."""
    import onnxruntime

    built_with = onnxruntime.get_available_providers()
    started: list[str] = []
    if CUDA in built_with:
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        try:
            started = _run_on([CUDA, CPU])
        except Exception as error:  # its exceptions have no class in common; the CPU may do all the same
            sys.stderr.write(f"Error: {error}\n")
    return {"version": onnxruntime.__version__, "built_with": built_with, "started": started or _run_on([CPU])}


def _run_on(providers: list[str]) -> list[str]:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(GRAPH, providers=providers)
    session.disable_fallback()
    session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})
    got: list[str] = session.get_providers()
    return got


def torch_probe() -> dict[str, Any]:
    """Return the versions of torch and timm, and whether torch can use CUDA."""
    import torch

    versions = {"torch": str(torch.__version__)}
    if installed("timm"):  # it imports torchvision, which not every build of torch goes with
        import timm

        versions["timm"] = timm.__version__
    return {"versions": versions, "built_for": torch.version.cuda, "cuda": torch.cuda.is_available()}


def openvino_probe() -> dict[str, Any]:
    """Return the version of OpenVINO, and what this CPU computes in at full speed."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"version": openvino.__version__.partition("-")[0], "capabilities": list(capabilities)}


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "onnxruntime": onnxruntime_probe,
    "torch": torch_probe,
    "openvino": openvino_probe,
}

if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(PROBES[sys.argv[1]]()) + "\n")
