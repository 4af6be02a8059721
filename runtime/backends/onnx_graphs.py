"""CUDA graphs: the kernels of a whole run started at once, which is what small batches on a GPU wait for most.

A captured graph reads and writes the addresses it was captured with. So each batch size has memory of its own that
never moves: images are copied in, outputs copied out.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backends.onnx_memory import names_of

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_GRAPH_ID = "gpu_graph_id"
_NO_CAPTURE = "-1"


@dataclass(frozen=True)
class Slot:
    """Memory of one batch size, bound to a session, and the run options that name its graph."""

    images: Any
    outputs: list[Any]
    binding: Any
    options: Any


class CapturedGraphs:
    """Runs a session by captured graphs, one for each shape of batch; the first run of a shape captures.

    All on one thread: onnxruntime captures for each thread anew, and keeps what it captured for threads that are over.
    So one run at a time, in memory that all callers share.
    """

    def __init__(self, session: Any, device: str, *, reuse_outputs: bool) -> None:
        self._session = session
        self._kind, _, index = device.partition(":")
        self._index = int(index or 0)
        self._reuse = reuse_outputs
        self._slots: dict[tuple[int, ...], Slot] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-graphs")

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for numpy images as numpy arrays, for tensors of the session's device as tensors."""
        if isinstance(images, np.ndarray):
            return self._thread.submit(self._run_arrays, images).result()
        from runtime.backends.torch_streams import stream_of_caller

        return self._thread.submit(self._run_tensors, images, stream_of_caller(images.device)).result()

    def _run_arrays(self, images: np.ndarray[Any, Any]) -> list[Any]:
        slot = self._slot(images.shape)
        slot.images.update_inplace(images)
        self._session.run_with_iobinding(slot.binding, slot.options)
        return [np.array(output.numpy()) for output in slot.outputs]

    def _run_tensors(self, images: Any, stream: Any) -> list[Any]:
        from torch.utils.dlpack import from_dlpack

        from runtime.backends.onnx_tensors import plain
        from runtime.backends.torch_streams import on_stream, wait_for_caller

        slot = self._slot(tuple(images.shape))
        with on_stream(stream):  # copies are the caller's: made after what it has queued, freed after what it will
            from_dlpack(slot.images).copy_(plain(images))
            wait_for_caller(images.device)
            self._session.run_with_iobinding(slot.binding, slot.options)
            outputs = [from_dlpack(output) for output in slot.outputs]
            if self._reuse:
                return outputs
            copies = [output.clone() for output in outputs]
            wait_for_caller(images.device)  # another caller's run may follow at once
        return copies

    def _slot(self, shape: tuple[int, ...]) -> Slot:
        if shape not in self._slots:
            self._slots[shape] = self._open(shape)
        return self._slots[shape]

    def _open(self, shape: tuple[int, ...]) -> Slot:
        source = self._session.get_inputs()[0]
        images = self._allocate(shape, _DTYPES[source.type])
        images.update_inplace(np.zeros(shape, _DTYPES[source.type]))
        outputs = self._outputs_for(images)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(source.name, images)
        for name, output in zip(names_of(self._session)[1], outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        return Slot(images, outputs, binding, _run_options(str(len(self._slots) + 1)))

    def _outputs_for(self, images: Any) -> list[Any]:
        """Return memory for the outputs, in the shapes that a run without capture gives."""
        name, names = names_of(self._session)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(name, images)
        for output in names:
            binding.bind_output(output, self._kind, self._index)
        self._session.run_with_iobinding(binding, _run_options(_NO_CAPTURE))
        return [self._allocate(v.shape(), _DTYPES[v.data_type()]) for v in binding.get_outputs()]

    def _allocate(self, shape: Any, dtype: Any) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._kind, self._index)


def _run_options(graph: str) -> Any:
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry(_GRAPH_ID, graph)
    return options
