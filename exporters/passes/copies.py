"""Passes over an exported ONNX graph: copies that give what they were given."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_all_uses_with

from exporters.passes.matching import constant, is_scalar, producer, sides


def drop_copies(model: ir.Model) -> int:
    """Replace every gathering of all values in their own order by the values themselves; return how many.

    torch gives the mean of a map strides of its own (`as_strided`). The exporter writes that as a table of places,
    computed from the size of the batch, which a GPU would read from the host.
    """
    found = [(node, source) for node in model.graph if (source := _copied(node)) is not None]
    for node, source in found:
        replace_all_uses_with(node.outputs[0], source)
    return len(found)


def _copied(node: ir.Node) -> ir.Value | None:
    """Return the value that a node copies as it is, if it does; results of the graph keep their nodes."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0 or node.outputs[0].is_graph_output():
        return None
    flat = producer(node.inputs[0], "Reshape")
    if flat is None or not is_scalar(flat.inputs[1], -1) or len(sides(flat.inputs[1]) or ()) != 1:
        return None
    source, shape = flat.inputs[0], sides(node.outputs[0])
    if source is None or shape is None or sides(source) != shape:
        return None
    rest = shape[1:]
    if not all(isinstance(side, int) for side in rest):
        return None
    return source if _counts_up(node.inputs[1], tuple(map(int, rest))) else None


def _counts_up(places: ir.Value | None, rest: tuple[int, ...]) -> bool:
    """Return whether `places` are 0, 1, 2, ... in rows of the shape `rest`, however many rows there are."""
    known: NDArray[Any] = np.zeros((), np.int64)
    while (added := producer(places, "Add")) is not None:
        constants = [array for value in added.inputs if (array := constant(value)) is not None]
        if len(constants) != 1:
            return False
        known = known + constants[0]
        places = next(value for value in added.inputs if constant(value) is None)
    count = int(np.prod(rest))
    within = np.arange(count).reshape(1, *rest)
    return known.ndim == within.ndim and np.array_equal(known, within) and _rows_of(places, count, known.ndim)


def _rows_of(starts: ir.Value | None, count: int, rank: int) -> bool:
    """Return whether `starts` are 0, count, 2 * count, ... along the first of `rank` dimensions."""
    spread = producer(starts, "Unsqueeze")
    if spread is None or not np.array_equal(constant(spread.inputs[1]), np.arange(1, rank)):  # type: ignore[arg-type]
        return False
    numbers, stride = spread.inputs[0], 1
    if (scaled := producer(numbers, "Mul")) is not None:
        factor = constant(scaled.inputs[1])
        if factor is None or factor.size != 1:
            return False
        numbers, stride = scaled.inputs[0], int(factor.reshape(-1)[0])
    rows = producer(numbers, "Range")
    return rows is not None and stride == count and is_scalar(rows.inputs[0], 0) and is_scalar(rows.inputs[2], 1)
