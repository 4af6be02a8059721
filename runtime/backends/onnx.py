"""Opening an ONNX artifact in onnxruntime, on the device asked for."""

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.artifacts import sha256_of
from runtime.backends.onnx_session import OnnxSession, first_line
from runtime.errors import ArtifactCorruptError, DependencyError, DeviceError
from runtime.machine import (
    cpu_count,
    cudnn_obstacle,
    engine_machine,
    gpu_capability,
    installed,
    nvidia_driver,
    older_than,
    onnxruntime_distributions,
    user_cache,
)
from runtime.providers import (
    CPU,
    CUDA,
    ON_GPU,
    Choice,
    Installation,
    check_installation,
    choose,
    parse_device,
    precision_obstacle,
    refused,
)
from runtime.request import Request
from runtime.tensorrt import TENSORRT, engine_key, engine_options, takes_profiles

# As in pyproject.toml.
OLDEST = "1.26"


def load(graph: Path, request: Request) -> OnnxSession:
    """Return a session for `graph` on the device asked for.

    Raises:
        DependencyError: onnxruntime is missing or too old for the graph, or two of its wheels are installed.
        DeviceError: The device or provider asked for does not start, or cannot capture CUDA graphs.
        ArtifactCorruptError: onnxruntime cannot read the graph or its weight data.
    """
    choice = choose(request.device, request.providers, look_at_installation())
    _check_options(request, choice)
    session, messages, failure = _create(graph, request, _with_options(graph, request, choice))
    if failure is None and session.get_providers()[0] == CUDA and (missing := cudnn_obstacle()):
        # onnxruntime loads cuDNN for the first convolution only: every call would fail, and no load.
        failure, messages = OSError(missing), f"Failed to load library with error: {missing}"
    if failure is not None and choice.providers != (CPU,):
        # The device or the file? The CPU provider tells; it serves, too, where nobody asked for a device.
        session, _, failure = _create(graph, request, [(CPU, {})])
    if failure is not None:
        _check_age(graph, failure)
        raise ArtifactCorruptError(f"onnxruntime cannot load {graph}: {first_line(failure)}.") from failure
    got = tuple(session.get_providers())
    if request.cuda_graphs and got[0] != CUDA:
        raise DeviceError(graphs_refused(choice, got, messages))
    if choice.required is not None and choice.required != got[0]:
        raise DeviceError(refused(choice.required, got, messages))
    reason = choice.reason
    if choice.required is None and got[0] == CPU:
        reason = refused(CUDA, got, messages)
    index = session.get_provider_options().get(got[0], {}).get("device_id", "0")
    device = f"cuda:{index}" if got[0] in ON_GPU else "cpu"
    session.disable_fallback()  # a run that fails on the GPU is an error, not one more run on the CPU
    served = OnnxSession(
        session,
        device,
        reason,
        at_once=images_at_once(device, request.threads or cpu_count(), request.batch_sizes),
        reuse_outputs=request.reuse_outputs,
        cuda_graphs=request.cuda_graphs,
    )
    if request.cuda_graphs:
        _capture(served, request)
    return served


def _check_age(graph: Path, failure: Exception) -> None:
    """Tell an onnxruntime that is too old for a graph from a graph that is damaged."""
    for name in onnxruntime_distributions():
        if version := older_than(name, OLDEST):
            raise DependencyError(
                f"{name} {version} cannot load {graph}: {first_line(failure)}. Artifacts need {OLDEST} or newer. "
                f"Run: pip install -U {name}."
            ) from failure


def _check_options(request: Request, choice: Choice) -> None:
    if CUDA in choice.providers:
        index = parse_device(request.device)[1]
        if problem := precision_obstacle(request.precision, gpu_capability(index)):
            raise DeviceError(problem)
    elif request.gpu_mem_limit is not None:
        raise DeviceError(
            f"gpu_mem_limit={request.gpu_mem_limit} needs {CUDA}, but {choice.reason}. Load it without gpu_mem_limit."
        )


def _capture(session: OnnxSession, request: Request) -> None:
    """Capture every batch size now: a call of another thread to the GPU while it happens can break a capture."""
    if image := _image_shape(request):
        for count in request.batch_sizes or ():
            session.run(np.zeros((count, *image), request.input))


def images_at_once(device: str, threads: int, batch_sizes: Sequence[int] | None) -> int | None:
    """Return how many images of a batch run together; `None` for all of them.

    On a CPU one per thread: what passes between two layers then stays in the cores' caches. Sizes that were asked for
    are kept to.
    """
    return threads if device == "cpu" and batch_sizes is None else None


def look_at_installation() -> Installation:
    """Return what is installed here.

    Raises:
        DependencyError: Not exactly one onnxruntime.
    """
    distributions = onnxruntime_distributions()
    check_installation(distributions, installed("onnxruntime"))
    import onnxruntime

    providers = tuple(onnxruntime.get_available_providers())
    return Installation(distributions, providers, CUDA in providers and nvidia_driver())


def graphs_refused(choice: Choice, got: tuple[str, ...], messages: str) -> str:
    """Return the error text for a session that was to capture CUDA graphs and does not run on CUDA."""
    if "graph capture feature" in messages:
        return (
            "cuda_graphs=True: not every node of this graph runs on CUDA, and one that runs on the CPU cannot be "
            "captured. Load it without cuda_graphs, or build it for CUDA: python -m exporters.build NAME --target cuda."
        )
    if CUDA not in choice.providers:
        return f"cuda_graphs=True needs {CUDA}, but {choice.reason}. Load it without cuda_graphs."
    return f"cuda_graphs=True: {refused(CUDA, got, messages)}"


def _create(
    graph: Path, request: Request, providers: list[tuple[str, dict[str, Any]]]
) -> tuple[Any, str, Exception | None]:
    """Return the session, what onnxruntime printed, and what it raised instead of giving a session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads or cpu_count()
    options.inter_op_num_threads = 1
    if request.load == "fast":
        options.add_session_config_entry("session.disable_prepacking", "1")
    session, failure = None, None
    # What the CPU provider has to say comes as an exception; other threads keep their output.
    catching = _native_output() if providers[0][0] != CPU else contextlib.nullcontext([""])
    with catching as messages:
        if providers[0][0] in ON_GPU and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # the CUDA libraries that pip installed; torch brings some of them only
        try:
            session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:
            failure = error
    return session, messages[0] + (f"\nError: {first_line(failure)}" if failure else ""), failure


def _with_options(graph: Path, request: Request, choice: Choice) -> list[tuple[str, dict[str, Any]]]:
    given = list(request.provider_options or ())
    if len(given) > len(choice.providers):
        raise DeviceError(
            f"provider_options has {len(given)} entries for the providers {', '.join(choice.providers)}: one dict each."
        )
    given += [{}] * (len(choice.providers) - len(given))
    defaults = {CUDA: _cuda_options(request)}
    if TENSORRT in choice.providers:
        defaults[TENSORRT] = _tensorrt_options(graph, request)
    return [(name, {**defaults.get(name, {}), **own}) for name, own in zip(choice.providers, given, strict=True)]


def _cuda_options(request: Request) -> dict[str, Any]:
    # onnxruntime multiplies in TF32 by default, torch only convolves in it: parity comes first, provider_options may
    # say otherwise.
    options = {"device_id": parse_device(request.device)[1], "use_tf32": 0}
    if request.gpu_mem_limit is not None:
        options["gpu_mem_limit"] = request.gpu_mem_limit
    if request.cuda_graphs:
        options["enable_cuda_graph"] = 1
    return options


def _tensorrt_options(graph: Path, request: Request) -> dict[str, Any]:
    index = parse_device(request.device)[1]
    folder = user_cache() / "tensorrt" / engine_key(sha256_of(graph), engine_machine(index))
    folder.mkdir(parents=True, exist_ok=True)
    image = _image_shape(request)
    if image is None:  # engines follow the images that come
        return engine_options(folder, index, "images", (), None)
    return engine_options(folder, index, "images", image, request.batch_sizes if takes_profiles(graph) else None)


def _image_shape(request: Request) -> tuple[int, ...] | None:
    """Return the shape of one image as the graph takes it; `None` when images may have any size."""
    size, channels = request.size, request.spec.preprocessing.channels
    if isinstance(size, str):
        return None
    return (channels, *size) if request.input == "float32" else (*size, channels)


# File descriptors belong to the process: two threads catching at once would put each other's back.
_output_lock = threading.Lock()


@contextlib.contextmanager
def _native_output() -> Iterator[list[str]]:
    """Catch what onnxruntime prints: it tells there, and only there, why a provider did not start."""
    caught: list[str] = []
    with _output_lock, tempfile.TemporaryFile() as file, contextlib.redirect_stdout(io.StringIO()) as printed:
        saved = os.dup(2)
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            caught.append(file.read().decode(errors="replace") + printed.getvalue())
