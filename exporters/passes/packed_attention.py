"""Self-attention with its packed projection as one operator, for CPUs."""

import math

import onnx_ir as ir

from exporters.passes.matching import MICROSOFT, is_vector, only_use, producer, reader, replace, sides

# Up to here it is faster; beyond, MultiHeadAttention's flash kernel does not write out the scores of all tokens.
MOST_TOKENS = 512


def pack_attention(model: ir.Model) -> int:
    """Replace projection, bias, split and MultiHeadAttention by onnxruntime's Attention; return how many.

    Attention multiplies by each head's part of the weights and so writes queries, keys and values where they are read:
    nothing is split or transposed. The weights stay as they are. Requires one projection [D, 3 * H * d] with a bias,
    the usual scale 1 / sqrt(d), no mask, and a known number of tokens of at most `MOST_TOKENS`.
    """
    return sum(_pack(model, node) for node in list(model.graph) if node.op_type == "MultiHeadAttention")


def _pack(model: ir.Model, attention: ir.Node) -> bool:
    split = producer(attention.inputs[0], "Split")
    if split is None or not _is_of(attention, split) or not _is_short(split.inputs[0]):
        return False
    heads = attention.attributes["num_heads"].as_int()
    add = producer(split.inputs[0], "Add")
    product, bias = (add.inputs if is_vector(add.inputs[1]) else add.inputs[::-1]) if add else (None, None)
    matmul = producer(product, "MatMul")
    if add is None or matmul is None or product is None or not is_vector(bias) or reader(product) is not add:
        return False
    tokens, weights = matmul.inputs
    if weights is None or weights.const_value is None or len(weights.const_value.shape) != 2:
        return False
    if not _has_usual_scale(attention, (sides(weights) or (0, 0))[1], heads):
        return False
    packed = ir.node(
        "Attention", [tokens, weights, bias], {"num_heads": heads}, domain=MICROSOFT, name=f"{attention.name}_packed"
    )
    replace(model, attention.outputs[0], [packed], packed.outputs[0])
    return True


def _is_of(attention: ir.Node, split: ir.Node) -> bool:
    """Return whether attention reads the three equal parts of a projection, in their order, and nobody else does."""
    lengths = [(sides(part) or (None,))[-1] for part in split.outputs]
    return (
        list(attention.inputs) == list(split.outputs)
        and len(split.outputs) == 3
        and len(set(lengths)) == 1
        and all(map(only_use, split.outputs))
        and split.inputs[0] is not None
        and only_use(split.inputs[0])
    )


def _is_short(tokens: ir.Value | None) -> bool:
    shape = sides(tokens)
    return shape is not None and len(shape) == 3 and isinstance(shape[1], int) and shape[1] <= MOST_TOKENS


def _has_usual_scale(attention: ir.Node, packed: int | str, heads: int) -> bool:
    """Return whether scores are divided by the root of a head's width: OpenVINO reads no other."""
    width = int(packed) // (3 * heads)
    scale = attention.attributes["scale"].as_float() if "scale" in attention.attributes else 0.0
    return scale == 0.0 or math.isclose(scale, 1 / math.sqrt(width), rel_tol=1e-6)
