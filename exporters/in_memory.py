"""Running a graph under construction: an onnxruntime session made from an `onnx_ir.Model`, without a file."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from runtime.machine import cpu_count

# Smaller tensors travel inside the serialised graph: onnxruntime reads shapes and scalars while it loads.
INLINE_BYTES = 1024
ERRORS_ONLY = 3


@dataclass(frozen=True)
class Runner:
    """A session and the arrays that it reads its weights from."""

    session: onnxruntime.InferenceSession
    weights: Sequence[NDArray[Any]]

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs for the graph's inputs, in order."""
        names = [given.name for given in self.session.get_inputs()]
        return list(self.session.run(None, dict(zip(names, inputs, strict=True))))


def open_runner(model: ir.Model, outputs: Sequence[ir.Value], *, optimised: bool = True) -> Runner:
    """Return what runs `model` on the CPU and gives `outputs`, any values of its main graph.

    The weights are those of the model, in place: contiguous ones are not copied, and nothing is written to disk.

    Args:
        model: The graph, left as it was.
        outputs: What a run returns, in this order.
        optimised: Whether onnxruntime may rewrite the graph.
    """
    large = [v for v in model.graph.initializers.values() if _is_large(v.const_value)]
    with _outputs(model.graph, outputs), _hollow(large) as arrays:
        graph = ir.to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.log_severity_level = ERRORS_ONLY
    # Prepacking would hold every weight a second time.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers([str(v.name) for v in large], values)
    return Runner(onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), arrays)


def array_of(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Return the values of `tensor`, contiguous; what is stored that way is not copied."""
    # Most are transposed views of torch's own weights, which torch makes contiguous several times faster than numpy.
    raw = getattr(tensor, "raw", None)
    return raw.detach().contiguous().numpy() if isinstance(raw, torch.Tensor) else np.ascontiguousarray(tensor.numpy())


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.nbytes > INLINE_BYTES


@contextlib.contextmanager
def _outputs(graph: ir.Graph, outputs: Sequence[ir.Value]) -> Iterator[None]:
    own = list(graph.outputs)
    graph.outputs[:] = outputs
    try:
        yield
    finally:
        graph.outputs[:] = own


@contextlib.contextmanager
def _hollow(values: Sequence[ir.Value]) -> Iterator[list[NDArray[Any]]]:
    """Put references in the place of the data of `values`; give the data."""
    tensors = [value.const_value for value in values]
    arrays = []
    try:
        for value, tensor in zip(values, tensors, strict=True):
            assert tensor is not None
            arrays.append(array_of(tensor))
            value.const_value = ir.ExternalTensor(
                "memory", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
            )
        yield arrays
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
