"""How large the values of a graph become: it decides which of them a float of 16 bits can hold."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporters.in_memory import open_runner
from exporters.inputs import Batch

FLOAT = "tensor(float)"


def measure(model: ir.Model, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the largest finite magnitude of every float32 value that flows through the main graph, by name.

    The graph runs once for each batch and reduces every value where it arises, so that nothing is kept.

    Args:
        model: A float32 graph with one input; left as it is.
        batches: What it runs on.
    """
    probe = model.clone()
    values = float_values(probe)
    run = open_runner(probe, _append_maxima(probe.graph, values), optimised=False)
    runs = [run(batch) for batch in batches]
    largest = np.max(np.array(runs, np.float32), axis=0)
    return {str(value.name): float(peak) for value, peak in zip(values, largest, strict=True)}


def float_values(model: ir.Model) -> list[ir.Value]:
    """Return the float32 values among the inputs of the graph and what its nodes compute, in that order.

    onnxruntime tells their types: passes that insert nodes do not always, and nothing else knows its own operators.
    """
    computed = [v for node in model.graph for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
    outputs = open_runner(model, computed, optimised=False).session.get_outputs()
    floats = [v for v, output in zip(computed, outputs, strict=True) if output.type == FLOAT]
    return [v for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT] + floats


def _append_maxima(graph: ir.Graph, values: Sequence[ir.Value]) -> list[ir.Value]:
    zero = ir.Value(name="nothing", const_value=ir.tensor(np.float32(0), name="nothing"))
    graph.register_initializer(zero)
    maxima = []
    # onnxruntime visits the last node first. In this order each maximum is taken before the next value is computed; in
    # the other all values of all blocks would be kept until the end.
    for position, value in reversed(list(enumerate(values))):
        magnitude, infinite = ir.node("Abs", [value]), ir.node("IsInf", [value])
        # The infinities of a mask are meant; what merely grows too large for 16 bits is finite here.
        finite = ir.node("Where", [infinite.outputs[0], zero, magnitude.outputs[0]])
        maximum = ir.node("ReduceMax", [finite.outputs[0]], {"keepdims": 0})
        maximum.outputs[0].name = f"maximum_{position}"
        graph.extend([magnitude, infinite, finite, maximum])
        maxima.append(maximum.outputs[0])
    return maxima[::-1]
