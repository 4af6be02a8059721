"""Passes over an exported ONNX graph: sums over large maps, ordered so that float32 keeps its digits."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

# onnxruntime adds up a whole map in a few float32 accumulators: of 96^3 voxels the normalised map is wrong by 1e-5, in
# eager by 1e-7; of 3,136 values of a flat image by twice eager's error. Up to this many it keeps within eager's own.
LONG = 1 << 11
# A reduction adds up in a single accumulator: the mean of 3,136 values is wrong by 1.2e-6, in eager by 1.2e-7.
LONG_REDUCTION = 1 << 9
# Of one image it adds up whole rows in turn where sides follow those that go: the mean of 256 equal tokens is wrong by
# 1.8e-6, of two images at once by 5e-7, in eager by 2e-7.
LONG_OVER_ROWS = 1 << 5
# Those whose result over all values is that over the results of parts of one size.
REDUCTIONS = ("ReduceL2", "ReduceMean", "ReduceSum")
# A sum is made of sums of at most this many values; of rows, of at most `LONG_OVER_ROWS`.
ROW = 128


def reduce_by_rows(model: ir.Model) -> bool:
    """Ensure that no mean, sum or L2 norm of more than `LONG_REDUCTION` values is taken in one go.

    Where further sides follow those that go, as with the mean of tokens, the limit is `LONG_OVER_ROWS`. Each becomes
    reductions of reductions of short rows. One over an unknown number of values, or over axes that are not neighbours,
    is left as it is.

    Returns:
        Whether anything was replaced.
    """
    nodes = [node for node in model.graph.all_nodes() if node.op_type in REDUCTIONS]
    found = [(node, block) for node in nodes if (block := _block(node)) and block.is_long]
    for node, block in found:
        source = node.inputs[0]
        assert source is not None
        build = _Builder(block.leading, block.count, block.trailing)
        kept = len(block.sides) if node.attributes.get_int("keepdims", 1) else 0
        _put_in_place(node, build, build.reduce(node.op_type, source, kept))
    return bool(found)


@dataclass(frozen=True)
class _Block:
    """The sides that a reduction goes over, how many come before them, and which come after."""

    leading: int
    sides: tuple[int, ...]
    trailing: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.sides)

    @property
    def is_long(self) -> bool:
        return self.count > (LONG_OVER_ROWS if self.trailing else LONG_REDUCTION)


def _block(node: ir.Node) -> _Block | None:
    """Return what a reduction goes over: neighbouring sides, they and all after them known."""
    source, given = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    axes = ir.convenience.get_const_tensor(given) if given is not None else None
    if source is None or source.shape is None or axes is None or not axes.size:
        return None
    rank = len(source.shape)
    chosen = sorted({int(axis) % rank for axis in axes.numpy().flatten()})
    first, end = chosen[0], chosen[-1] + 1
    sides = [side for side in source.shape[first:] if isinstance(side, int)]
    if chosen != list(range(first, end)) or len(sides) != rank - first:
        return None
    return _Block(first, tuple(sides[: end - first]), tuple(sides[end - first :]))


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
    rank = len(source.shape)
    build = _Builder(2, count)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    centred = build("Sub", source, build.reduce("ReduceMean", source, rank - 2))
    variance = build.reduce("ReduceMean", build("Mul", centred, centred), rank - 2)
    deviation = build("Sqrt", build("Add", variance, build.constant(np.array(epsilon, np.float32))))
    _put_in_place(node, build, build("Div", centred, deviation))


def _put_in_place(node: ir.Node, build: "_Builder", result: ir.Value) -> None:
    old = node.outputs[0]
    result.name, result.shape, result.type = old.name, old.shape, old.type
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, build.nodes)
    replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


class _Builder:
    """Collects nodes; calling it adds one and returns its output."""

    def __init__(self, leading: int, count: int, trailing: Sequence[int] = ()) -> None:
        self.nodes: list[ir.Node] = []
        self.leading = (0,) * leading  # for Reshape, 0 is "as it is"
        most = LONG_OVER_ROWS if trailing else ROW
        self.count, self.trailing = count, trailing
        self.padding = next(more for more in itertools.count() if _has_factors(count + more, most))
        self.widths = _widths(count + self.padding, most)

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.node(op_type, inputs, attributes)
        self.nodes.append(made)
        return made.outputs[0]

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        made = ir.node("Constant", [], {"value": ir.tensor(array)})
        self.nodes.append(made)
        return made.outputs[0]

    def reduce(self, op_type: str, value: ir.Value, kept: int) -> ir.Value:
        """Return the reduction over all between the leading and the trailing sides, with `kept` sides of one there.

        A number that has no such factors, as the 577 tokens of 24 x 24 patches and a class token, is filled up with
        zeros to the next one that has; a mean is then a sum divided.
        """
        mean = op_type == "ReduceMean" and self.padding > 0
        value = self._padded(value) if self.padding else value
        for width in self.widths:
            rows = self("Reshape", value, self._shape(*self.leading, -1, width, *self.trailing))
            value = self("ReduceSum" if mean else op_type, rows, self._shape(len(self.leading) + 1), keepdims=0)
        if mean:
            value = self("Div", value, self.constant(np.array(self.count, np.float32)))
        return self("Reshape", value, self._shape(*self.leading, *(1 for _ in range(kept)), *self.trailing))

    def _padded(self, value: ir.Value) -> ir.Value:
        one_side = self("Reshape", value, self._shape(*self.leading, self.count, *self.trailing))
        before, after = [0] * (len(self.leading) + 1), [0] * len(self.trailing)
        return self("Pad", one_side, self._shape(*before, *after, *before[1:], self.padding, *after))

    def _shape(self, *sides: int) -> ir.Value:
        return self.constant(np.array(sides, np.int64))


def _has_factors(count: int, most: int) -> bool:
    return math.prod(_widths(count, most)) == count


def _widths(count: int, most: int) -> Sequence[int]:
    """Return factors of `count`, each the largest that is at most `most`, as far as there are such factors."""
    widths = []
    while width := next((w for w in range(min(most, count), 1, -1) if count % w == 0), 0):
        widths.append(width)
        count //= width
    return widths
