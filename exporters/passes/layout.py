"""Moves of data that undo each other, or that need not be."""

import onnx_ir as ir

from exporters.passes.matching import constant, producer, replace, sides


def cancel_transposes(model: ir.Model) -> int:
    """Join transposes of transposes, and reshapes of reshapes; drop those that change nothing. Return how many."""
    return sum(_cancel(model, node) for node in list(model.graph))


def _cancel(model: ir.Model, node: ir.Node) -> bool:
    if node.op_type == "Transpose":
        return _cancel_transpose(model, node)
    return node.op_type == "Reshape" and _cancel_reshape(node)


def _cancel_transpose(model: ir.Model, node: ir.Node) -> bool:
    first = producer(node.inputs[0], "Transpose")
    if first is None or first.inputs[0] is None:
        return False
    inner, outer = first.attributes["perm"].as_ints(), node.attributes["perm"].as_ints()
    order = [inner[axis] for axis in outer]
    if order == list(range(len(order))):
        _bypass(node, first.inputs[0])
    else:
        joined = ir.node("Transpose", [first.inputs[0]], {"perm": order}, name=node.name)
        replace(model, node.outputs[0], [joined], joined.outputs[0])
    return True


def _cancel_reshape(node: ir.Node) -> bool:
    source = node.inputs[0]
    assert source is not None
    if sides(source) is not None and sides(source) == sides(node.outputs[0]) and not node.outputs[0].is_graph_output():
        _bypass(node, source)
        return True
    first, target = producer(source, "Reshape"), constant(node.inputs[1])
    # A 0 copies a side of the first reshape's result, which would then be another one's.
    if first is None or first.inputs[0] is None or target is None:
        return False
    ends = sides(first.inputs[0]), sides(node.outputs[0])
    if None not in ends and ends[0] == ends[1] and not node.outputs[0].is_graph_output():
        _bypass(node, first.inputs[0])
        return True
    if 0 in target:
        return False
    node.replace_input_with(0, first.inputs[0])
    return True


def _bypass(node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=False)
