"""Running an onnxruntime session: numpy arrays in and out, or tensors of the GPU it runs on."""

import re
from typing import Any

import numpy as np

from runtime.backends.onnx_memory import OutputMemory, names_of
from runtime.errors import DeviceError


class OnnxSession:
    """An onnxruntime session; `run` may be called from several threads at once.

    `at_once` is how many of a batch's images the CPU runs together, all of them by default.
    """

    native = "numpy"

    def __init__(
        self,
        session: Any,
        device: str,
        reason: str,
        *,
        at_once: int | None = None,
        reuse_outputs: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self._session = session
        self.providers = tuple(session.get_providers())
        self.device = device
        self.reason = reason
        self._graphs = None
        if cuda_graphs:
            from runtime.backends.onnx_graphs import CapturedGraphs

            self._graphs = CapturedGraphs(session, device, reuse_outputs=reuse_outputs)
        self._at_once = at_once
        self._reuse = reuse_outputs
        self._arrays, self._tensors = OutputMemory(reuse=reuse_outputs), OutputMemory(reuse=reuse_outputs)

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a batch: numpy arrays, or tensors for tensors of this session's GPU.

        Raises:
            DeviceError: onnxruntime could not run it, most often for lack of memory.
        """
        try:
            return self._run(images)
        except Exception as error:  # its exceptions have no class in common; binding memory raises RuntimeError itself
            if type(error) is not RuntimeError and not type(error).__module__.startswith("onnxruntime"):
                raise
            raise DeviceError(run_failed(len(images), self.device, run_cause(error))) from error

    def _run(self, images: Any) -> list[Any]:
        if self._graphs is not None:
            return self._graphs.run(images)
        if not isinstance(images, np.ndarray):
            from runtime.backends.onnx_tensors import run_tensors

            return run_tensors(self._session, images, self._tensors)
        at_once = self._at_once or len(images)
        if len(images) > at_once or self._reuse:
            return run_into(self._session, images, self._arrays, at_once)
        return list(self._session.run(None, {names_of(self._session)[0]: images}))


def run_into(session: Any, images: np.ndarray[Any, Any], memory: OutputMemory, at_once: int) -> list[Any]:
    """Return the outputs for numpy images, run `at_once` at a time, each into its rows of one memory."""
    arrays, start = memory.take(images), 0
    if arrays is None:
        start = min(at_once, len(images))
        first = list(session.run(None, {names_of(session)[0]: images[:start]}))
        memory.learn(images, first)
        if start == len(images):
            return first
        arrays = memory.take(images) or []
        for array, output in zip(arrays, first, strict=True):
            array[:start] = output
    for row in range(start, len(images), at_once):
        _run_bound(session, images[row : row + at_once], [array[row : row + at_once] for array in arrays])
    return arrays


def _run_bound(session: Any, images: np.ndarray[Any, Any], arrays: list[Any]) -> None:
    from onnxruntime import OrtValue

    name, outputs = names_of(session)
    binding = session.io_binding()
    binding.bind_cpu_input(name, images)
    for output, array in zip(outputs, arrays, strict=True):
        binding.bind_ortvalue_output(output, OrtValue.ortvalue_from_numpy(array))
    binding.synchronize_inputs()
    session.run_with_iobinding(binding)


def run_failed(count: int, device: str, cause: str) -> str:
    """Return the error text for a run that onnxruntime gave up."""
    text = f"onnxruntime could not run {count} images on {device}: {cause}."
    if "alloc" not in cause.lower() and "memory" not in cause.lower():
        return text
    limit = " or a higher gpu_mem_limit" if device != "cpu" else ""
    return f"{text} Give it fewer images at once, such as by load_model(..., batch_sizes=(1, 8)){limit}."


def run_cause(error: Exception) -> str:
    """Return why a node failed, without the place in onnxruntime's own source where that was met."""
    message = first_line(error).rpartition("Status Message: ")[2]
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", message)


def first_line(error: Exception) -> str:
    """Return what an exception says first."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
