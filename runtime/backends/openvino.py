"""Serving an ONNX artifact through OpenVINO, on CPUs."""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.mapped_weights import dropping_pages
from runtime.errors import ArtifactCorruptError, BackboneError, DependencyError, DeviceError
from runtime.machine import cpu_count, installed
from runtime.providers import parse_device
from runtime.request import Request

MISSING = "backend='openvino' needs openvino, which is not installed. Run: pip install 'backbone-runtime[openvino]'."
# Per precision: what the CPU must be capable of, in OpenVINO's words, and the type of what is not quantised.
# An int8 graph says itself what is quantised; the rest of it, attention above all, is as fast as the CPU can.
PRECISIONS = {"fp32": ("FP32", "f32"), "bf16": ("BF16", "bf16"), "int8": ("INT8", "bf16")}


def load(graph: Path, request: Request) -> "OpenvinoSession":
    """Return a session for `graph` on the CPU; the precision is the request's, whatever the graph's weights are.

    Raises:
        DependencyError: openvino is missing.
        DeviceError: Another device than the CPU was asked for, or a precision that this CPU does not compute in.
        ArtifactCorruptError: OpenVINO cannot read the graph or its weight data.
    """
    if not installed("openvino"):
        raise DependencyError(MISSING)
    if parse_device(request.device)[0] == "cuda":
        raise DeviceError(
            f"device={request.device!r}: backend='openvino' serves CPUs. Use device='cpu', or backend='onnx' for CUDA."
        )
    import openvino

    core = openvino.Core()
    hint = precision_hint(request.precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    try:
        # It packs what it reads, but leaves it mapped: a giant's weights would stand in memory twice.
        with dropping_pages(graph.parent):
            compiled = core.compile_model(str(graph), "CPU", _properties(request, hint))
    except RuntimeError as error:
        raise ArtifactCorruptError(f"OpenVINO cannot load {graph}: {_last_line(error)}.") from error
    reason = "device='cpu' was asked for" if request.device else "OpenVINO serves CPUs"
    # Two images per thread: what passes between two layers then stays in the cores' caches.
    return OpenvinoSession(compiled, reason, None if request.batch_sizes else 2 * (request.threads or cpu_count()))


def obstacle(request: Request) -> BackboneError | None:
    """Return why OpenVINO cannot serve a request on this machine; OpenVINO itself is asked only where CPUs differ."""
    if not installed("openvino"):
        return DependencyError(MISSING)
    if request.precision != "bf16" or request.backend not in ("auto", "openvino"):
        return None
    import openvino

    try:
        precision_hint(request.precision, openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except DeviceError as error:
        return error
    return None


def precision_hint(precision: str, capabilities: Sequence[str]) -> str:
    """Return the type to compute in, as OpenVINO spells it.

    Args:
        precision: What was asked for.
        capabilities: What the CPU computes in at full speed, as OpenVINO lists it.

    Raises:
        DeviceError: This CPU does not compute in `precision`.
    """
    possible = [name for name, (capability, _) in PRECISIONS.items() if capability in capabilities]
    if precision in possible:
        hint = PRECISIONS[precision][1]
        return hint if hint != "bf16" or "BF16" in capabilities else "f32"
    why = "this CPU has no instructions for it" if precision in PRECISIONS else "it has none for CPUs"
    raise DeviceError(
        f"precision={precision!r}: backend='openvino' cannot run it: {why}. Possible here: {', '.join(possible)}."
    )


def _properties(request: Request, hint: str) -> Mapping[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": request.threads or cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned, the threads of every process would start from the same first core.
        "ENABLE_CPU_PINNING": False,
    }


def _last_line(error: RuntimeError) -> str:
    """Return the cause: OpenVINO begins with where in its own source it was met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")


class OpenvinoSession:
    """A compiled OpenVINO model; `run` may be called from several threads at once.

    `at_once` is how many of a batch's images run together, all of them where it is `None`.
    """

    native = "numpy"
    device = "cpu"
    providers: tuple[str, ...] = ()

    def __init__(self, compiled: Any, reason: str, at_once: int | None) -> None:
        self._compiled = compiled
        self._at_once = at_once
        self._outputs = len(compiled.outputs)
        # An inference request belongs to one call at a time: as many as were ever needed at once are kept.
        self._idle: deque[Any] = deque()
        self.reason = reason

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a float32 batch [B, C, H, W], as numpy arrays of their own."""
        try:
            inference = self._idle.pop()
        except IndexError:
            inference = self._compiled.create_infer_request()
        outputs = self._infer(inference, images)
        self._idle.append(inference)
        return outputs

    def _infer(self, inference: Any, images: Any) -> list[Any]:
        at_once = self._at_once or len(images)
        arrays: list[Any] = []
        for row in range(0, len(images), at_once):
            results = inference.infer({0: images[row : row + at_once]}, share_inputs=True, share_outputs=True)
            outputs = [results[index] for index in range(self._outputs)]  # memory of the next inference, too
            arrays = arrays or [np.empty((len(images), *output.shape[1:]), output.dtype) for output in outputs]
            for array, output in zip(arrays, outputs, strict=True):
                array[row : row + at_once] = output
        return arrays
