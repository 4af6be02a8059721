"""Serving an ONNX artifact through onnxruntime."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import ArtifactCorruptError, DeviceError
from runtime.machine import cpu_count, installed, nvidia_driver, onnxruntime_distributions
from runtime.providers import CPU, CUDA, Choice, Installation, check_installation, choose, parse_device, refused
from runtime.request import Request


def load(graph: Path, request: Request) -> "OnnxSession":
    """Return a session for `graph` on the device asked for.

    Raises:
        DependencyError: onnxruntime is missing, or two of its wheels are installed.
        DeviceError: The device or provider asked for does not start.
        ArtifactCorruptError: onnxruntime cannot read the graph or its weight data.
    """
    choice = choose(request.device, request.providers, look_at_installation())
    session, messages = _create(graph, request, choice)
    got = tuple(session.get_providers())
    if choice.required is not None and choice.required != got[0]:
        raise DeviceError(refused(choice.required, got, messages))
    reason = choice.reason
    if choice.required is None and got[0] == CPU:
        reason = refused(CUDA, got, messages)
    return OnnxSession(session, got, parse_device(request.device)[1], reason)


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


def _create(graph: Path, request: Request, choice: Choice) -> tuple[Any, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads or cpu_count()
    options.inter_op_num_threads = 1
    providers = _with_options(request, choice)
    failure: Exception | None = None
    session: Any = None
    with _native_stderr() as messages:
        if choice.providers[0] == CUDA:
            _preload_cuda(onnxruntime)
        try:
            session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:
            failure = error
    if failure is None:
        return session, messages[0]
    if choice.required not in (None, CPU):
        raise DeviceError(refused(str(choice.required), (), f"{messages[0]}\nError: {failure}")) from failure
    raise ArtifactCorruptError(
        f"onnxruntime cannot load {graph}: {str(failure).splitlines()[0]} "
        f"Build it again: python -m exporters.build {request.spec.name} --force"
    ) from failure


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


def _preload_cuda(onnxruntime: Any) -> None:
    """Let onnxruntime find the CUDA libraries that pip installed; torch, when loaded already, has brought its own."""
    if "torch" not in sys.modules and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


@contextlib.contextmanager
def _native_stderr() -> Iterator[list[str]]:
    """Catch what native code prints: onnxruntime tells there, and only there, why a provider did not start."""
    caught: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            caught.append(file.read().decode(errors="replace"))


class OnnxSession:
    """An onnxruntime session; `run` may be called from several threads at once."""

    native = "numpy"

    def __init__(self, session: Any, providers: tuple[str, ...], index: int, reason: str) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.providers = providers
        self.device = f"cuda:{index}" if providers[0].startswith(("CUDA", "Tensorrt")) else "cpu"
        self.reason = reason

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a float32 batch [B, C, H, W], as numpy arrays."""
        return list(self._session.run(None, {self._input: images}))
