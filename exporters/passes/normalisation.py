"""A residual sum and the norm of it as one operator."""

import onnx_ir as ir

from exporters.passes.matching import MICROSOFT, is_vector, only_use, producer, replace, sides


def fuse_skip_normalisation(model: ir.Model) -> int:
    """Replace LayerNormalization(a + b) by SkipLayerNormalization, which also gives the sum; return how many.

    Requires a and b of one shape [B, S, D] and a norm over the last axis. A bias vector that was added to one of them
    before is added by the same operator.
    """
    return sum(_fuse(model, node) for node in list(model.graph) if node.op_type == "LayerNormalization")


def _fuse(model: ir.Model, norm: ir.Node) -> bool:
    total = norm.inputs[0]
    add = producer(total, "Add")
    if add is None or total is None or len(norm.inputs) < 3 or not all(map(is_vector, norm.inputs[1:3])):
        return False
    first, second = add.inputs
    shape = sides(first)
    if first is None or second is None or shape is None or len(shape) != 3 or shape != sides(second):
        return False
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    if axis not in (-1, 2):
        return False
    skip, addend, bias = _without_bias(first, second)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    inputs = [skip, addend, *norm.inputs[1:3], *([bias] if bias is not None else [])]
    fused = ir.node(
        "SkipLayerNormalization",
        inputs,
        {"epsilon": epsilon},
        domain=MICROSOFT,
        num_outputs=4,
        name=f"{norm.name}_skip",
    )
    normed, *unused, kept = fused.outputs
    for output in unused:
        output.name = ""
    normed.shape, normed.type = norm.outputs[0].shape, norm.outputs[0].type
    model.opset_imports[MICROSOFT] = 1
    replace(model, total, [fused], kept)
    name = norm.outputs[0].name
    ir.convenience.replace_all_uses_with(norm.outputs[0], normed, replace_graph_outputs=True)
    norm.outputs[0].name, normed.name = f"{name}_replaced", name
    return True


def _without_bias(first: ir.Value, second: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Return the residual, what is added to it, and the bias that was added to that."""
    for skip, addend in ((first, second), (second, first)):
        add = producer(addend, "Add")
        if add is not None and only_use(addend):
            for product, bias in (add.inputs, add.inputs[::-1]):
                if product is not None and is_vector(bias) and producer(product, "MatMul") is not None:
                    return skip, product, bias
    return first, second, None
