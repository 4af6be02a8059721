"""Class and register tokens: put before the patches without reading the batch's size; computed alone where possible."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes.matching import (
    add_constant,
    constant,
    is_vector,
    only_use,
    other,
    producer,
    reader,
    replace,
    sides,
)


def pad_for_prefix_tokens(model: ir.Model) -> int:
    """Replace Concat(expanded tokens, patches) by Pad and the addition of a constant; return how many.

    Requires a known number of patches. Ensures that nothing reads the batch's size to expand a token: on a GPU that
    size lies on the host. Adding zeros changes no bit of what is padded.
    """
    return sum(_pad(model, node) for node in list(model.graph) if node.op_type == "Concat")


def _pad(model: ir.Model, concat: ir.Node) -> bool:
    shape = sides(concat.outputs[0])
    if shape is None or len(shape) != 3 or concat.attributes["axis"].as_int() % 3 != 1:
        return False
    known = [expanded(value) for value in concat.inputs]
    lengths = [(sides(value) or (None, None))[1] for value in concat.inputs]
    if [tokens is None for tokens in known].count(True) != 1 or not all(isinstance(n, int) for n in lengths):
        return False
    counts = [int(n) for n in lengths if n is not None]
    at = next(i for i, tokens in enumerate(known) if tokens is None)
    before, after = sum(counts[:at]), sum(counts[at + 1 :])
    rows = [np.zeros((1, counts[at], int(shape[2])), np.float32) if t is None else t for t in known]
    total, target = np.concatenate(rows, axis=1), concat.outputs[0]
    add = reader(target)
    position = constant(other(add, target)) if add is not None and add.op_type == "Add" else None
    if add is not None and position is not None and position.shape == total.shape:
        total, target = total + position, add.outputs[0]
    pads = add_constant(model, f"{concat.name}_pads", np.array([0, before, 0, 0, after, 0], np.int64))
    padded = ir.node("Pad", [concat.inputs[at], pads], name=f"{concat.name}_pad")
    padded.outputs[0].name, padded.outputs[0].shape = f"{concat.name}_padded", concat.outputs[0].shape
    padded.outputs[0].type = concat.outputs[0].type
    tokens = add_constant(model, f"{concat.name}_tokens", np.ascontiguousarray(total))
    summed = ir.node("Add", [padded.outputs[0], tokens], name=f"{concat.name}_add")
    replace(model, target, [padded, summed], summed.outputs[0])
    return True


def expanded(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the tokens [1, n, D] that `value` is for every image, or `None` if it depends on the images."""
    expand = producer(value, "Expand")
    tokens = constant(expand.inputs[0]) if expand else None
    shape = sides(value)
    if tokens is None or shape is None or tokens.ndim != 3 or tokens.shape[1:] != shape[1:]:
        return None
    return tokens


# What computes each token from that token alone, and which of its inputs hold tokens.
_TOKENWISE = {
    "Split": (0,),
    "LayerNormalization": (0,),
    "SkipLayerNormalization": (0, 1),
    "MatMul": (0,),
    "Add": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Erf": (0,),
    "Sigmoid": (0,),
    "Gelu": (0,),
    "BiasGelu": (0,),
    "QuickGelu": (0,),
    "MultiHeadAttention": (0,),
}


def compute_read_token_only(model: ir.Model) -> int:
    """Where of all tokens [B, S, D] only one is read, compute the end of the network for that token; return how often.

    The last attention still sees every key and value; its query, projection and all that follows are of one token. The
    class token of a ViT is read so: of its last block a fifth is left. Nothing changes where some operation between
    that attention and the token mixes tokens.
    """
    return sum(_narrow(model, node) for node in list(model.graph) if node.op_type == "Gather")


def _narrow(model: ir.Model, gather: ir.Node) -> bool:
    tokens, index = gather.inputs
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    shape = sides(tokens)
    if tokens is None or shape is None or len(shape) != 3 or axis != 1 or not only_use(tokens):
        return False
    which = constant(index)
    if which is None or which.ndim != 0:
        return False
    attention = _last_attention(tokens)
    if attention is None:
        return False
    full = _ancestors(attention.inputs[1:])
    if not _tokenwise(tokens, full):
        return False
    copy = _Copy(model, gather, int(which), full, shape)
    one = copy.of(tokens)
    axes = add_constant(model, f"{gather.name}_axis", np.array([1], np.int64))
    squeezed = ir.node("Squeeze", [one, axes], name=f"{gather.name}_squeeze")
    replace(model, gather.outputs[0], [*copy.made, squeezed], squeezed.outputs[0])
    return True


def _tokenwise(tokens: ir.Value, full: set[ir.Value]) -> bool:
    """Return whether each token of `tokens` depends on one token of what is in `full`, keys and values aside."""
    pending, seen = [tokens], set(full)
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in seen or value.const_value is not None:
            continue
        if node is None or node.op_type not in _TOKENWISE or not _along_the_last_axis(node):
            return False
        seen.add(value)
        pending += [v for i in _TOKENWISE[node.op_type] if (v := node.inputs[i]) is not None]
    return True


def _along_the_last_axis(node: ir.Node) -> bool:
    """Return whether a node that works along an axis does so within each token."""
    return "axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, 2)


def _last_attention(value: ir.Value) -> ir.Node | None:
    """Return the attention nearest to `value` that it is computed from, token by token."""
    seen: set[ir.Value] = set()
    pending, found = [value], None
    while pending:
        current = pending.pop()
        node = current.producer()
        if current in seen or node is None or node.op_type not in _TOKENWISE:
            continue
        seen.add(current)
        if node.op_type == "MultiHeadAttention":
            if found is None or node.graph is None or _comes_after(node, found):
                found = node
            continue
        pending += [v for i in _TOKENWISE[node.op_type] if (v := node.inputs[i]) is not None]
    return found


def _comes_after(node: ir.Node, other: ir.Node) -> bool:
    return other.outputs[0] in _ancestors(node.inputs)


def _ancestors(values: Iterable[ir.Value | None]) -> set[ir.Value]:
    """Return the values and all that they are computed from."""
    found: set[ir.Value] = set()
    pending = [value for value in values if value is not None]
    while pending:
        value = pending.pop()
        if value not in found:
            found.add(value)
            node = value.producer()
            if node is not None:
                found.update(node.outputs)  # a fused norm gives the residual sum as well
                pending += [v for v in node.inputs if v is not None]
    return found


class _Copy:
    """Copies of token-wise nodes that compute one token; what is in `full` is computed for all tokens anyway."""

    def __init__(
        self, model: ir.Model, gather: ir.Node, index: int, full: set[ir.Value], shape: tuple[int | str, ...]
    ) -> None:
        self.made: list[ir.Node] = []
        self._model, self._name, self._full, self._length = model, gather.name, full, shape[1]
        self._bounds = [
            add_constant(model, f"{gather.name}_{name}", np.array([at], np.int64))
            for name, at in (("start", index), ("end", index + 1), ("along", 1))
        ]
        self._known: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        """Return the one token of `value`, [B, 1, D]."""
        if value not in self._known:
            node = value.producer()
            whole = value in self._full or node is None
            self._known[value] = self._sliced(value) if whole else self._copied(node, value)  # type: ignore[arg-type]
        return self._known[value]

    def _sliced(self, value: ir.Value) -> ir.Value:
        node = ir.node("Slice", [value, *self._bounds], name=f"{self._name}_of_{value.name}")
        return self._keep(node, value, 0)

    def _copied(self, node: ir.Node, value: ir.Value) -> ir.Value:
        inputs = list(node.inputs)
        for i in _TOKENWISE[node.op_type]:
            operand = inputs[i]
            if operand is not None and self._has_tokens(operand):
                inputs[i] = self.of(operand)
        number = node.outputs.index(value)
        copy = ir.node(
            node.op_type,
            inputs,
            node.attributes,
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=f"{node.name}_one",
        )
        for output, old in zip(copy.outputs, node.outputs, strict=True):
            output.name = f"{old.name}_one" if old.name else ""
        made = self._keep(copy, value, number)
        for output, old in zip(copy.outputs, node.outputs, strict=True):  # a skip norm gives its sum as well
            if old.name and old not in self._full:
                self._known.setdefault(old, output)
        return made

    def _has_tokens(self, operand: ir.Value) -> bool:
        """Return whether an operand differs from token to token; weights, biases and scales do not."""
        shape = sides(operand)
        return not is_vector(operand) and shape is not None and len(shape) == 3 and shape[1] == self._length

    def _keep(self, node: ir.Node, value: ir.Value, number: int) -> ir.Value:
        self.made.append(node)
        for output in node.outputs:
            output.type = value.type
        made = node.outputs[number]
        made.name = made.name or f"{node.name}_output"
        assert value.shape is not None
        made.shape = ir.Shape([value.shape[0], 1, *list(value.shape)[2:]])
        return made
