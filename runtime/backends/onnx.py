"""Serving an ONNX artifact through onnxruntime."""

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import ArtifactCorruptError, DeviceError
from runtime.machine import cpu_count, installed, nvidia_driver, onnxruntime_distributions
from runtime.providers import CPU, CUDA, ON_GPU, Choice, Installation, check_installation, choose, parse_device, refused
from runtime.request import Request


def load(graph: Path, request: Request) -> "OnnxSession":
    """Return a session for `graph` on the device asked for.

    Raises:
        DependencyError: onnxruntime is missing, or two of its wheels are installed.
        DeviceError: The device or provider asked for does not start.
        ArtifactCorruptError: onnxruntime cannot read the graph or its weight data.
    """
    choice = choose(request.device, request.providers, look_at_installation())
    asked = _with_options(request, choice)
    session, messages, failure = _create(graph, request, asked)
    if failure is not None and choice.providers != (CPU,):
        # The device or the file? The CPU provider tells; it serves, too, where nobody asked for a device.
        session, _, failure = _create(graph, request, [(CPU, {})])
    if failure is not None:
        raise ArtifactCorruptError(f"onnxruntime cannot load {graph}: {_first_line(failure)}.") from failure
    got = tuple(session.get_providers())
    if choice.required is not None and choice.required != got[0]:
        raise DeviceError(refused(choice.required, got, messages))
    reason = choice.reason
    if choice.required is None and got[0] == CPU:
        reason = refused(CUDA, got, messages)
    index = session.get_provider_options().get(got[0], {}).get("device_id", "0")
    return OnnxSession(session, got, int(index), reason)


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


def _create(
    graph: Path, request: Request, providers: list[tuple[str, dict[str, Any]]]
) -> tuple[Any, str, Exception | None]:
    """Return the session, what onnxruntime printed, and what it raised instead of giving a session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads or cpu_count()
    options.inter_op_num_threads = 1
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
    return session, messages[0] + (f"\nError: {_first_line(failure)}" if failure else ""), failure


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _with_options(request: Request, choice: Choice) -> list[tuple[str, dict[str, Any]]]:
    given = list(request.provider_options or ())
    if len(given) > len(choice.providers):
        raise DeviceError(
            f"provider_options has {len(given)} entries for the providers {', '.join(choice.providers)}: one dict each."
        )
    given += [{}] * (len(choice.providers) - len(given))
    index = parse_device(request.device)[1]
    # onnxruntime multiplies in TF32 by default, torch does not: parity comes first, provider_options may say otherwise.
    defaults: dict[str, dict[str, Any]] = {CUDA: {"device_id": index, "use_tf32": 0}}
    return [(name, {**defaults.get(name, {}), **own}) for name, own in zip(choice.providers, given, strict=True)]


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


class OnnxSession:
    """An onnxruntime session; `run` may be called from several threads at once."""

    native = "numpy"

    def __init__(self, session: Any, providers: tuple[str, ...], index: int, reason: str) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.providers = providers
        self.device = f"cuda:{index}" if providers[0] in ON_GPU else "cpu"
        self.reason = reason

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a float32 batch [B, C, H, W], as numpy arrays."""
        return list(self._session.run(None, {self._input: images}))
