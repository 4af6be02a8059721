"""Activations as one operator each."""

import math

import onnx_ir as ir

from exporters.passes.matching import MICROSOFT, constant, is_scalar, is_vector, other, producer, reader, replace


def fuse_gelu(model: ir.Model) -> int:
    """Replace x * 0.5 * (1 + erf(x / sqrt 2)) by Gelu, with the bias that was added before it by BiasGelu; exact both.

    Returns:
        How many.
    """
    return sum(_fuse_gelu(model, node) for node in list(model.graph) if node.op_type == "Erf")


def _fuse_gelu(model: ir.Model, erf: ir.Node) -> bool:
    division = producer(erf.inputs[0], "Div")
    if division is None or not is_scalar(division.inputs[1], math.sqrt(2)):
        return False
    value = division.inputs[0]
    plus = _next(erf, "Add")
    half = _next(plus, "Mul") if plus and is_scalar(other(plus, erf.outputs[0]), 1.0) else None
    last = _next(half, "Mul") if half and plus and is_scalar(other(half, plus.outputs[0]), 0.5) else None
    if last is None or half is None or value is None or other(last, half.outputs[0]) is not value:
        return False
    biased = _biased(value)
    kind, inputs = ("Gelu", [value]) if biased is None else ("BiasGelu", list(biased))
    fused = ir.node(kind, inputs, domain=MICROSOFT, name=f"{last.name}_gelu")
    model.opset_imports[MICROSOFT] = 1
    replace(model, last.outputs[0], [fused], fused.outputs[0])
    return True


def _biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return what was added to give `value`: a product and a vector; `None` if others read the sum as well."""
    add = producer(value, "Add")
    if add is None or len(value.uses()) != 2 or value.is_graph_output():  # by the division, and by the last product
        return None
    product, bias = add.inputs
    if not is_vector(bias):
        product, bias = bias, product
    if product is None or bias is None or not is_vector(bias) or producer(product, "MatMul") is None:
        return None
    return product, bias


def _next(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the only node that reads the result of `node`, if it is of that kind."""
    after = reader(node.outputs[0]) if node is not None else None
    return after if after is not None and (after.op_type, after.domain) == (op_type, "") else None


def fuse_silu(model: ir.Model) -> int:
    """Replace x * sigmoid(alpha * x) by QuickGelu, which is the same: SiLU with alpha 1, CLIP's GELU with 1.702.

    Returns:
        How many.
    """
    return sum(_fuse_silu(model, node) for node in list(model.graph) if node.op_type == "Sigmoid")


def _fuse_silu(model: ir.Model, sigmoid: ir.Node) -> bool:
    product = _next(sigmoid, "Mul")
    value = other(product, sigmoid.outputs[0]) if product is not None else None
    alpha = _multiple(sigmoid.inputs[0], value)
    if product is None or value is None or alpha is None:
        return False
    fused = ir.node("QuickGelu", [value], {"alpha": alpha}, domain=MICROSOFT, name=f"{product.name}_silu")
    model.opset_imports[MICROSOFT] = 1
    replace(model, product.outputs[0], [fused], fused.outputs[0])
    return True


def _multiple(argument: ir.Value | None, value: ir.Value | None) -> float | None:
    """Return which multiple of `value` the argument of an activation is."""
    if argument is value:
        return 1.0
    scaling = producer(argument, "Mul")
    if scaling is None or value is None or value not in scaling.inputs:
        return None
    factor = constant(other(scaling, value))
    return float(factor.reshape(-1)[0]) if factor is not None and factor.size == 1 else None
