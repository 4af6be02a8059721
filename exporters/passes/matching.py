"""Questions that passes ask of a graph, and the one way in which they change it."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the node that computes `value` if it is of that kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and (node.op_type, node.domain) == (op_type, domain) else None


def only_use(value: ir.Value) -> bool:
    """Return whether exactly one node reads `value`, and it is no output of the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def reader(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads `value`; `None` if there are several, or it is an output of the graph."""
    return next(iter(value.uses())).node if only_use(value) else None


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the value if it is known before the graph runs."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_scalar(value: ir.Value | None, number: float) -> bool:
    """Return whether `value` is known and equals `number`, as float32 stores it."""
    known = constant(value)
    return known is not None and known.size == 1 and bool(np.isclose(float(known.reshape(-1)[0]), number, rtol=1e-6))


def is_vector(value: ir.Value | None) -> bool:
    """Return whether `value` is a weight of one dimension."""
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def sides(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return the shape of a value, symbolic dimensions by name; `None` where one is unknown."""
    if value is None or value.shape is None:
        return None
    found = [side if isinstance(side, int) else side.value for side in value.shape]
    return None if any(side is None for side in found) else tuple(found)  # type: ignore[arg-type]


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the second operand of a node of two operands that reads `value`."""
    first, second = node.inputs
    return second if first is value else first


def add_constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Return a new initializer, named after what it serves."""
    graph, number = model.graph, 0
    while (unique := name if not number else f"{name}_{number}") in graph.initializers:
        number += 1
    value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def replace(model: ir.Model, old: ir.Value, made: Sequence[ir.Node], new: ir.Value) -> None:
    """Let `new`, computed by the nodes `made`, stand wherever `old` stood; the nodes go to the place of its producer.

    What nothing reads any more is left to be swept away later.
    """
    place = old.producer()
    assert place is not None
    model.graph.insert_before(place, list(made))
    new.shape, new.type = new.shape or old.shape, new.type or old.type
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{name}_replaced"
    new.name = name
