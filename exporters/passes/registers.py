"""Register tokens, which transformers puts between the class token and patches that are already joined."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes.matching import add_constant, constant, other, producer, replace
from exporters.passes.tokens import expanded

# What a part of the joined tokens holds for every image; and which of the tokens before they were, if it is a slice.
_Part = tuple[NDArray[np.generic], tuple[int, int] | None]


def pad_for_registers(model: ir.Model) -> int:
    """Replace Concat(first tokens, expanded registers, the others) by one Pad and the addition of a constant.

    Requires that `pad_for_prefix_tokens` has put the first tokens before the patches; ensures what that does.

    Returns:
        How many.
    """
    return sum(_pad(model, node) for node in list(model.graph) if node.op_type == "Concat")


def _pad(model: ir.Model, concat: ir.Node) -> bool:
    joined = next((add for value in concat.inputs if (add := _sliced(value)) is not None), None)
    pad = next((p for value in joined.inputs if (p := producer(value, "Pad")) is not None), None) if joined else None
    known = constant(other(joined, pad.outputs[0])) if joined is not None and pad is not None else None
    pads = constant(pad.inputs[1]) if pad is not None else None
    if pad is None or known is None or pads is None or pads[4] or known.ndim != 3:
        return False
    if concat.attributes["axis"].as_int() != 1:
        return False
    parts = [_part(value, joined, known) for value in concat.inputs]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts) or not _patches_come_last(found, int(pads[1]), known.shape[1]):
        return False
    tokens = np.ascontiguousarray(np.concatenate([rows for rows, _ in found], axis=1))
    before = int(pads[1]) + tokens.shape[1] - known.shape[1]
    target = concat.outputs[0]
    lengths = add_constant(model, f"{concat.name}_pads", np.array([0, before, 0, 0, 0, 0], np.int64))
    padded = ir.node("Pad", [pad.inputs[0], lengths], name=f"{concat.name}_pad")
    value = padded.outputs[0]
    value.name, value.shape, value.type = f"{concat.name}_padded", target.shape, target.type
    summed = ir.node("Add", [value, add_constant(model, f"{concat.name}_tokens", tokens)], name=f"{concat.name}_add")
    replace(model, target, [padded, summed], summed.outputs[0])
    return True


def _sliced(value: ir.Value | None) -> ir.Node | None:
    """Return the sum that `value` is a slice of."""
    piece = producer(value, "Slice")
    return producer(piece.inputs[0], "Add") if piece is not None else None


def _part(value: ir.Value | None, joined: ir.Node | None, known: NDArray[np.generic]) -> _Part | None:
    """Return what is known of tokens that are the same for every image, or a slice of those joined before."""
    tokens = expanded(value)
    if tokens is not None:
        return tokens, None
    bounds = _bounds(value, known.shape[1]) if _sliced(value) is joined else None
    return (known[:, slice(*bounds)], bounds) if bounds is not None else None


def _bounds(value: ir.Value | None, length: int) -> tuple[int, int] | None:
    """Return which tokens a slice takes; `None` where it skips some or is not of tokens."""
    piece = producer(value, "Slice")
    numbers = [constant(bound) for bound in piece.inputs[1:]] if piece is not None else []
    known = [int(number.reshape(-1)[0]) for number in numbers if number is not None and number.size == 1]
    if len(known) != len(numbers) or len(known) < 3 or known[2] != 1 or known[3:] not in ([], [1]):
        return None
    start, stop, _ = slice(known[0], known[1]).indices(length)
    return start, stop


def _patches_come_last(parts: Sequence[_Part], before: int, length: int) -> bool:
    """Return whether the last part holds all patches, which lie behind `before` tokens, and no other part any."""
    *firsts, (_, last) = parts
    return (
        last is not None
        and last[0] <= before
        and last[1] == length
        and all(bounds is None or bounds[1] <= before for _, bounds in firsts)
    )
