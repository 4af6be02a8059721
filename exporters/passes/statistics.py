"""A pass over an exported ONNX graph: the statistics of large maps, summed so that float32 keeps its digits."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

# onnxruntime adds up a whole map in a few float32 accumulators: of 96^3 voxels the normalised map is wrong by 1e-5, in
# eager by 1e-7; of 25,088 values by three times eager's error. Up to this many it keeps within eager's own.
LONG = 1 << 12
# A sum is made of sums of at most this many values.
ROW = 128


def normalise_by_rows(model: ir.Model) -> bool:
    """Ensure that no InstanceNormalization of more than `LONG` values a channel is left.

    Each becomes plain operators whose means are means of means of short rows. One with a scale or a bias of its own
    (torch's exporter keeps those of GroupNorm apart) or of an unknown size is left as it is.

    Returns:
        Whether anything was replaced.
    """
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "InstanceNormalization" and _is_long(node)]
    for node in nodes:
        _replace(node)
    return bool(nodes)


def _is_long(node: ir.Node) -> bool:
    return _is_constant(node.inputs[1], 1) and _is_constant(node.inputs[2], 0) and (_count(node) or 0) > LONG


def _is_constant(value: ir.Value | None, number: int) -> bool:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor is not None and bool((tensor.numpy() == number).all())


def _count(node: ir.Node) -> int | None:
    """Return the number of values of a channel, when it is known."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    sides = [side for side in source.shape[2:] if isinstance(side, int)]
    return math.prod(sides) if len(sides) == len(source.shape) - 2 else None


def _replace(node: ir.Node) -> None:
    source, count = node.inputs[0], _count(node)
    assert source is not None
    assert source.shape is not None
    assert count is not None
    build = _Builder(source, count)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    centred = build("Sub", source, build.mean(source))
    variance = build.mean(build("Mul", centred, centred))
    deviation = build("Sqrt", build("Add", variance, build.constant(np.array(epsilon, np.float32))))
    result = build("Div", centred, deviation)
    old = node.outputs[0]
    result.name, result.shape, result.type = old.name, old.shape, old.type
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, build.nodes)
    replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


class _Builder:
    """Collects nodes; calling it adds one and returns its output."""

    def __init__(self, source: ir.Value, count: int) -> None:
        assert source.shape is not None
        self.nodes: list[ir.Node] = []
        self.rank = len(source.shape)
        self.widths = _widths(count)

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.node(op_type, inputs, attributes)
        self.nodes.append(made)
        return made.outputs[0]

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        made = ir.node("Constant", [], {"value": ir.tensor(array)})
        self.nodes.append(made)
        return made.outputs[0]

    def mean(self, value: ir.Value) -> ir.Value:
        """Return the mean of each channel, shaped to broadcast over the channel."""
        for width in self.widths:
            rows = self("Reshape", value, self._shape(0, 0, -1, width))
            value = self("ReduceMean", rows, self._shape(3), keepdims=0)
        return self("Reshape", value, self._shape(0, 0, *(1 for _ in range(self.rank - 2))))

    def _shape(self, *sides: int) -> ir.Value:
        return self.constant(np.array(sides, np.int64))


def _widths(count: int) -> Sequence[int]:
    """Return factors of `count`, each the largest that is at most `ROW`; what has none stays whole."""
    widths = []
    while count > 1:
        width = next((w for w in range(min(ROW, count), 1, -1) if count % w == 0), count)
        widths.append(width)
        count //= width
    return widths
