"""Marked attention becomes onnxruntime's MultiHeadAttention, which has flash kernels, and reads [B, S, H * d]."""

import numpy as np
import onnx_ir as ir

from exporters.attention import DOMAIN, MARKER
from exporters.passes.matching import MICROSOFT, add_constant, constant, producer, replace, sides

_HEADS_LAST, _PACKED = [0, 2, 1, 3], [2, 0, 3, 1, 4]


def fuse_attention(model: ir.Model) -> int:
    """Replace every marker by one MultiHeadAttention; return how many.

    Ensures that no marker is left. Query, key and value that are parts of one packed projection are split off it
    directly; the transposes that timm and transformers write around the call are left for `cancel_transposes`.
    """
    markers = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, MARKER)]
    splits: dict[ir.Value, list[ir.Value]] = {}
    flats: dict[ir.Value, ir.Value] = {}  # one value may be key and value both, or of several calls
    for node in markers:
        _fuse(model, node, splits, flats)
    model.opset_imports.pop(DOMAIN, None)
    if markers:
        model.opset_imports[MICROSOFT] = 1
    return len(markers)


def _fuse(
    model: ir.Model, marker: ir.Node, splits: dict[ir.Value, list[ir.Value]], flats: dict[ir.Value, ir.Value]
) -> None:
    query, key, value, *bias = marker.inputs
    assert query is not None
    heads, width = _heads(query), _heads(marker.outputs[0])
    made: list[ir.Node] = []
    for part in (query, key, value):
        assert part is not None
        if part not in flats:
            flats[part] = _unpacked(model, part, splits, made) or _flattened(model, part, made)
    flat = [flats[part] for part in (query, key, value) if part is not None]
    added = _additive(model, bias[0], made, flats) if bias else None
    inputs = flat if added is None else [*flat, None, None, added]
    attributes = {"num_heads": heads[0], "scale": marker.attributes["scale"].as_float()}
    fused = ir.node("MultiHeadAttention", inputs, attributes, domain=MICROSOFT, name=f"{marker.name}_attention")
    wide = [*_leading(query), heads[0] * width[1]]
    _describe(fused.outputs[0], f"{marker.name}_joined", wide, query)
    apart = _reshape(model, fused.outputs[0], [0, 0, heads[0], width[1]], f"{marker.name}_heads")
    _describe(apart.outputs[0], f"{marker.name}_heads", [*_leading(query), heads[0], width[1]], query)
    back = ir.node("Transpose", [apart.outputs[0]], {"perm": _HEADS_LAST}, name=f"{marker.name}_back")
    replace(model, marker.outputs[0], [*made, fused, apart, back], back.outputs[0])


def _additive(
    model: ir.Model, bias: ir.Value | None, made: list[ir.Node], known: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """Return what is added to the scores: `None` for a mask that lets everything pass (transformers writes such)."""
    if bias is None or bias.type is None or bias.type.dtype != ir.DataType.BOOL:
        return bias
    if _passes_all(bias):
        return None
    if bias in known:  # the blocks of a model share their mask
        return known[bias]
    nothing, never = (add_constant(model, f"{bias.name}_{n}", np.array(n, np.float32)) for n in (0.0, -np.inf))
    chosen = ir.node("Where", [bias, nothing, never], name=f"{bias.name}_added")
    _describe(chosen.outputs[0], f"{bias.name}_added", list(bias.shape or ()), nothing)
    made.append(chosen)
    known[bias] = chosen.outputs[0]
    return chosen.outputs[0]


def _passes_all(mask: ir.Value | None) -> bool:
    known, expand = constant(mask), producer(mask, "Expand")
    return bool(known.all()) if known is not None else expand is not None and _passes_all(expand.inputs[0])


def _heads(value: ir.Value) -> tuple[int, int]:
    assert value.shape is not None
    heads, width = value.shape[1], value.shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    return heads, width


def _leading(query: ir.Value) -> list[ir.SymbolicDim | int]:
    """Return batch and length of a value [B, H, S, d]."""
    assert query.shape is not None
    return [query.shape[0], query.shape[2]]


def _flattened(model: ir.Model, value: ir.Value | None, made: list[ir.Node]) -> ir.Value:
    """Return [B, S, H * d] of [B, H, S, d]."""
    assert value is not None
    heads, width = _heads(value)
    turned = ir.node("Transpose", [value], {"perm": _HEADS_LAST}, name=f"{value.name}_turned")
    _describe(turned.outputs[0], f"{value.name}_turned", [*_leading(value), heads, width], value)
    joined = _reshape(model, turned.outputs[0], [0, 0, heads * width], f"{value.name}_flat")
    _describe(joined.outputs[0], f"{value.name}_flat", [*_leading(value), heads * width], value)
    made += [turned, joined]
    return joined.outputs[0]


def _unpacked(
    model: ir.Model, value: ir.Value | None, splits: dict[ir.Value, list[ir.Value]], made: list[ir.Node]
) -> ir.Value | None:
    """Return the part of a projection [B, S, 3 * H * d] that `value` is, or `None` if it is no such part.

    A packed projection is written as reshape to [B, S, 3, H, d], permute to [3, B, H, S, d], unbind.
    """
    squeeze = producer(value, "Squeeze")
    piece = producer(squeeze.inputs[0], "Slice") if squeeze else None
    permute = producer(piece.inputs[0], "Transpose") if piece else None
    if piece is None or permute is None or permute.attributes["perm"].as_ints() != tuple(_PACKED):
        return None
    unpack = producer(permute.inputs[0], "Reshape")
    start, axes = constant(piece.inputs[1]), constant(piece.inputs[3]) if len(piece.inputs) > 3 else None
    if unpack is None or start is None or axes is None or axes.tolist() != [0]:
        return None
    packed, shape = unpack.inputs[0], sides(unpack.outputs[0])
    if packed is None or shape is None or len(sides(packed) or ()) != 3 or not isinstance(shape[2], int):
        return None
    if packed not in splits:
        splits[packed] = _split(model, packed, shape[2], made)
    return splits[packed][int(start.reshape(-1)[0]) % shape[2]]


def _split(model: ir.Model, packed: ir.Value, parts: int, made: list[ir.Node]) -> list[ir.Value]:
    assert packed.shape is not None
    width = packed.shape[2]
    assert isinstance(width, int)
    lengths = add_constant(model, f"{packed.name}_parts", np.full(parts, width // parts, np.int64))
    node = ir.node("Split", [packed, lengths], {"axis": 2}, num_outputs=parts, name=f"{packed.name}_split")
    for number, output in enumerate(node.outputs):
        _describe(output, f"{packed.name}_part_{number}", [*packed.shape[:2], width // parts], packed)
    made.append(node)
    return list(node.outputs)


def _reshape(model: ir.Model, value: ir.Value, shape: list[int], name: str) -> ir.Node:
    target = add_constant(model, f"{name}_shape", np.asarray(shape, np.int64))
    return ir.node("Reshape", [value, target], name=f"{name}_reshape")


def _describe(value: ir.Value, name: str, shape: list[ir.SymbolicDim | int], like: ir.Value) -> None:
    value.name, value.shape, value.type = name, ir.Shape(shape), like.type
