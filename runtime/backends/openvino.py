"""Serving an ONNX artifact through OpenVINO, on CPUs."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime.backends.mapped_weights import dropping_pages
from runtime.backends.openvino_session import OpenvinoSession, last_line
from runtime.errors import ArtifactCorruptError, BackboneError, DependencyError, DeviceError
from runtime.machine import cpu_count, installed, older_than
from runtime.providers import parse_device
from runtime.request import Request

MISSING = "backend='openvino' needs openvino, which is not installed. Run: pip install 'backbone-runtime[openvino]'."
# As in pyproject.toml: those before know no onnxruntime attention, or hang while they start.
OLDEST = "2026.4"
# Per precision: what the CPU must be capable of, in OpenVINO's words, and the type of what is not quantised.
# An int8 graph says itself what is quantised; the rest of it, attention above all, is as fast as the CPU can.
PRECISIONS = {"fp32": ("FP32", "f32"), "bf16": ("BF16", "bf16"), "int8": ("INT8", "bf16")}


def load(graph: Path, request: Request) -> OpenvinoSession:
    """Return a session for `graph` on the CPU; the precision is the request's, whatever the graph's weights are.

    Raises:
        DependencyError: openvino is missing or too old.
        DeviceError: Another device than the CPU was asked for, or a precision that this CPU does not compute in.
        ArtifactCorruptError: OpenVINO cannot read the graph or its weight data.
    """
    if problem := _not_usable():
        raise problem
    if parse_device(request.device)[0] == "cuda":
        raise DeviceError(
            f"device={request.device!r}: backend='openvino' serves CPUs. Use device='cpu', or backend='onnx' for CUDA."
        )
    reason = "device='cpu' was asked for" if request.device else "OpenVINO serves CPUs"
    core = new_core()
    hint = _hint(core, request)

    def compiled(streams: int) -> Any:
        # With a core of its own: what is let go of takes its threads along, which a forked process would wait for.
        # OpenVINO packs what it reads, but leaves it mapped: a giant's weights would stand in memory twice.
        with dropping_pages(graph.parent):
            return new_core().compile_model(model, "CPU", _properties(request.threads or cpu_count(), streams, hint))

    try:
        # Kept, with its weights mapped: a graph that is pruned while it serves can still be compiled for batches.
        model = core.read_model(str(graph))
        session = OpenvinoSession(compiled, reason, spread=not request.batch_sizes)
    except RuntimeError as error:
        raise ArtifactCorruptError(f"OpenVINO cannot load {graph}: {last_line(error)}.") from error
    return session


def obstacle(request: Request) -> BackboneError | None:
    """Return why OpenVINO cannot serve a request on this machine; OpenVINO itself is asked only where CPUs differ."""
    if problem := _not_usable():
        return problem
    if request.precision != "bf16" or request.backend not in ("auto", "openvino"):
        return None
    try:
        _hint(new_core(), request)
    except DeviceError as error:
        return error
    return None


def _not_usable() -> DependencyError | None:
    if not installed("openvino"):
        return DependencyError(MISSING)
    if version := older_than("openvino", OLDEST):
        return DependencyError(
            f"backend='openvino' needs openvino {OLDEST} or newer; this is {version}. "
            "Run: pip install -U 'backbone-runtime[openvino]'."
        )
    return None


def new_core() -> Any:
    """Return an entry to OpenVINO whose CPU plugin was started on a thread that is over.

    The plugin gives the thread that starts it a stack for signals, and takes that memory back on whichever thread lets
    go of it last. Were they two threads that live on, the first one's next Ctrl-C would end in a crash.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_started).result()


def _started() -> Any:
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return core


def _hint(core: Any, request: Request) -> str:
    return precision_hint(request.precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


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


def _properties(threads: int, streams: int, hint: str) -> Mapping[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        **({"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}),
        # Pinned, the threads of every process would start from the same first core.
        "ENABLE_CPU_PINNING": False,
    }
