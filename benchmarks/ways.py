"""The ways to serve a backbone that are measured; each function loads one, in a process of its own.

All are given the same images on their device and give float32 back. Only numpy is imported before a way is chosen.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Options = Mapping[str, Any]


def _as_it_is(value: Any) -> Any:
    return value


def _nothing(_: Any) -> list[NDArray[Any]]:
    """Products are no outputs of a backbone."""
    return []


def _no_wait() -> None:
    """Return at once: a CPU's work is done when the call returns."""


@dataclass(frozen=True)
class Served:
    """A loaded backbone.

    Attributes:
        call: Input to output: what is timed.
        to_input: Array to what `call` takes, on the device: not timed.
        to_arrays: Output to float arrays: not timed.
        wait: Returns when the device has done all it was given.
        about: What the report tells of it.
    """

    call: Callable[[Any], Any]
    to_input: Callable[[NDArray[Any]], Any] = _as_it_is
    to_arrays: Callable[[Any], list[NDArray[Any]]] = _as_it_is
    wait: Callable[[], None] = _no_wait
    about: dict[str, Any] = field(default_factory=dict)


def load_timed(way: str, model: str, options: Options, libraries: Sequence[str]) -> tuple[Served, float]:
    """Return the backbone and the seconds that loading took, once `libraries` were imported."""
    for library in libraries:
        import_module(library)
    started = time.perf_counter()
    served = WAYS[way](model, options)
    served.wait()
    return served, time.perf_counter() - started


def reason(error: Exception) -> str:
    """Return why a way cannot be had, in a sentence."""
    if isinstance(error, ModuleNotFoundError) and type(error) is ModuleNotFoundError:
        return f"{error.name} is not installed"
    text = (str(error).strip().splitlines() or [""])[0]
    return text if type(error).__module__ == "runtime.errors" else f"{type(error).__name__}: {text}"


def peak_resident_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts the parent's memory at the time of the fork
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def runtime(model: str, options: Options) -> Served:
    """Load what this project serves: `load_model` and nothing else."""
    from runtime import load_model

    backbone = load_model(model, on_fallback="error", **options)
    about = {"backend": backbone.backend, "device": backbone.device, "providers": list(backbone.providers)}
    if backbone.device == "cpu":
        return Served(backbone, to_arrays=_listed, about=about)
    return _on_torch(backbone, backbone.device, about)


def eager_cast(model: str, options: Options) -> Served:
    """Eager torch, its weights converted: `module.to(dtype)`."""
    module, device, dtype = _module(model, options)
    module = module.to(dtype)
    return _on_torch(lambda images: _each(module(images.to(dtype)), lambda o: o.float()), device)


def eager_autocast(model: str, options: Options) -> Served:
    """Eager torch under autocast."""
    import torch

    module, device, dtype = _module(model, options)

    def call(images: Any) -> Any:
        with torch.autocast(device.partition(":")[0], dtype):
            return _each(module(images), lambda o: o.float())

    return _on_torch(call, device)


def compiled(model: str, options: Options) -> Served:
    """`torch.compile` of the module, converted to the precision; what it compiles is part of the first calls."""
    import torch

    module, device, dtype = _module(model, options)
    fast: Callable[[Any], Any] = torch.compile(module.to(dtype), mode=options.get("mode"))
    return _on_torch(lambda images: _each(fast(images.to(dtype)), lambda o: o.float()), device)


def plain_onnx(model: str, options: Options) -> Served:  # noqa: ARG001  (the graph is already exported)
    """Load an exported file in onnxruntime as most people run it: default options; on a GPU bound to its memory."""
    import onnxruntime

    device = options["device"]
    wanted = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if device != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(options["graph"], providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"onnxruntime did not start {wanted}")
    name = session.get_inputs()[0].name
    about = {"backend": "onnxruntime", "device": device, "providers": session.get_providers()}
    if device == "cpu":
        return Served(lambda images: session.run(None, {name: images}), about=about)
    return replace(_on_torch(lambda images: _run_bound(session, images), device, about), to_arrays=_fetched)


def float64(model: str, options: Options) -> Served:
    """Eager torch in float64, the yardstick of fidelity; tells of the backbone's size and work."""
    import torch

    from benchmarks.work import work_of
    from exporters.float64 import run_in_float64

    module, _, _ = _module(model, options)
    return Served(
        lambda images: run_in_float64(module, images),
        to_input=torch.from_numpy,
        to_arrays=_listed,
        about=work_of(module, options["image_shape"]),
    )


def products_torch(model: str, options: Options) -> Served:  # noqa: ARG001  (shapes are given)
    """Load the backbone's own matrix products alone, in torch."""
    import torch

    device, precision = options["device"], options["precision"]
    dtype = torch.int8 if precision == "int8" else _dtype(precision)

    def draw(*shape: int) -> Any:
        drawn = torch.randn(shape) if dtype is not torch.int8 else torch.randint(-100, 100, shape)
        return drawn.to(dtype).to(device)

    weights = [draw(*(shape[1:] if precision == "int8" else shape[:0:-1])) for shape in options["products"]]
    multiply = torch._int_mm if precision == "int8" else torch.nn.functional.linear

    def to_input(images: NDArray[Any]) -> Any:
        return [draw(len(images) * rows, inside) for rows, inside, _ in options["products"]]

    served = _on_torch(lambda rows: [multiply(r, w) for r, w in zip(rows, weights, strict=True)], device)
    about = {"backend": "torch", "device": device}
    return Served(served.call, to_input, _nothing, served.wait, about)


def products_onnx(model: str, options: Options) -> Served:  # noqa: ARG001  (shapes are given)
    """Load the backbone's own matrix products alone, in onnxruntime on the CPU."""
    import onnxruntime

    from benchmarks.work import graph_of_products
    from runtime.machine import cpu_count

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cpu_count()
    graph, dtype = graph_of_products(options["products"], options["precision"])
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)

    def to_input(images: NDArray[Any]) -> Any:
        shapes = [(len(images) * rows, inside) for rows, inside, _ in options["products"]]
        return {f"rows_{i}": (100 * random.random(shape)).astype(dtype) for i, shape in enumerate(shapes)}

    about = {"backend": "onnxruntime", "device": options["device"]}
    return Served(lambda rows: session.run(None, rows), to_input, _nothing, about=about)


WAYS: dict[str, Callable[[str, Options], Served]] = {
    way.__name__: way
    for way in (runtime, eager_cast, eager_autocast, compiled, plain_onnx, float64, products_torch, products_onnx)
}


def _module(model: str, options: Options) -> tuple[Any, str, Any]:
    """Return the eager module, its device, and the dtype asked for."""
    from runtime import load_model

    given = {name: options[name] for name in ("weights", "device") if name in options}
    backbone = load_model(model, backend="eager", **given)
    return backbone.module, backbone.device, _dtype(options.get("precision", "fp32"))


def _dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _on_torch(call: Callable[[Any], Any], device: str, about: dict[str, Any] | None = None) -> Served:
    import torch

    from exporters.full_precision import torch_in_full_precision

    def without_gradients(images: Any) -> Any:
        with torch.no_grad(), nullcontext() if device == "cpu" else torch_in_full_precision():
            return call(images)

    return Served(
        without_gradients,
        to_input=lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device),
        to_arrays=_listed,
        wait=_no_wait if device == "cpu" else torch.cuda.synchronize,
        about=about or {"backend": "torch", "device": device, "providers": []},
    )


def _run_bound(session: Any, images: Any) -> list[Any]:
    """Return the outputs of a session for a tensor, as onnxruntime's own values, on the device of both."""
    binding = session.io_binding()
    device, index = images.device.type, images.device.index or 0
    binding.bind_input(session.get_inputs()[0].name, device, index, np.float32, tuple(images.shape), images.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, device, index)
    session.run_with_iobinding(binding)
    outputs: list[Any] = binding.get_outputs()
    return outputs


def _fetched(outputs: Sequence[Any]) -> list[NDArray[Any]]:
    return [output.numpy() for output in outputs]


def _each(output: Any, convert: Callable[[Any], Any]) -> list[Any]:
    return [convert(o) for o in (output if isinstance(output, list | tuple) else [output])]


def _listed(output: Any) -> list[NDArray[Any]]:
    return _each(output, lambda o: o if isinstance(o, np.ndarray) else o.cpu().numpy())
