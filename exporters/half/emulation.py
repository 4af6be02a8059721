"""A graph of 16 bits as the CPU can compute it: float32 kernels, every value rounded as the graph says.

onnxruntime's CPU provider has few kernels for fp16 and none for bf16. For fp16 it computes in float32 and removes the
casts that it put in between, so that nothing is rounded and nothing overflows: a graph that gives infinities on a GPU
looks perfect. Casts that a graph holds itself are kept at every level of optimisation: here each value gets its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.half.kernels import MOVES, SHAPES
from exporters.in_memory import open_runner

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulate(model: ir.Model) -> ir.Model:
    """Return a graph with the numbers that `model` gives on a device with kernels in 16 bits.

    What is left out is what happens inside one kernel, which there as here sums in float32.

    Args:
        model: A graph of fp16 or bf16 with float32 inputs and outputs; left as it is.
    """
    emulated = model.clone()
    graph = emulated.graph
    narrow: dict[ir.Value, ir.DataType] = {}
    for value in list(graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype in NARROW:
            narrow[_insert(graph, value, ir.DataType.FLOAT)] = value.const_value.dtype
    for node in list(graph):
        if node.op_type == "Cast":
            _keep(graph, node, narrow)
        elif node.op_type not in SHAPES:
            _round_outputs(graph, node, narrow)
    return emulated


def run_emulated(model: ir.Model, batches: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    """Return the outputs for each batch that `model` gives on a device with kernels in 16 bits."""
    emulated = emulate(model)
    # Not optimised: onnxruntime would widen all weights while it loads, a second copy of them.
    run = open_runner(emulated, list(emulated.graph.outputs), optimised=False)
    return [run(batch) for batch in batches]


def read_staged(path: Path) -> ir.Model:
    """Return a staged graph with its weights memory-mapped: files with hard links, as staged ones, onnx_ir refuses."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            array = np.memmap(
                path.parent / tensor.location,
                mode="r",
                dtype=tensor.dtype.numpy(),
                offset=tensor.offset or 0,
                shape=tuple(tensor.shape.numpy()),
            )
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    return model


def _keep(graph: ir.Graph, cast: ir.Node, narrow: dict[ir.Value, ir.DataType]) -> None:
    dtype = ir.DataType(cast.attributes.get_int("to"))
    if dtype in NARROW:
        narrow[_insert(graph, cast.outputs[0], ir.DataType.FLOAT)] = dtype


def _round_outputs(graph: ir.Graph, node: ir.Node, narrow: dict[ir.Value, ir.DataType]) -> None:
    dtype = next((narrow[v] for v in node.inputs if v is not None and v in narrow), None)
    if dtype is None:
        return
    for value in node.outputs:
        if not value.uses() and not value.is_graph_output():  # optional, and perhaps never computed
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)  # a new one: clones of a graph share theirs
        rounded = value if node.op_type in MOVES else _insert(graph, value, dtype, ir.DataType.FLOAT)
        narrow[rounded] = dtype


def _insert(graph: ir.Graph, value: ir.Value, *dtypes: ir.DataType) -> ir.Value:
    """Put casts behind `value`, one after the other; return what its users now read."""
    users = list(value.uses())
    last = value
    for dtype in dtypes:
        cast = ir.node("Cast", [last], {"to": dtype})
        cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}_emulated_{dtype.name.lower()}", dtype
        producer = last.producer()
        if producer is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)
        last = cast.outputs[0]
    for user, position in users:
        user.replace_input_with(position, last)
    return last
