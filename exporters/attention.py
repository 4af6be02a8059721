"""Attention kept whole through export: one node per call, which each target lowers to what it runs best.

torch's ONNX exporter writes scaled_dot_product_attention out as matrix products and a softmax, from which no optimiser
finds its way back, and translates it for 4-D tensors only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from runtime.errors import ExportError

SDPA = F.scaled_dot_product_attention

# The operator that stands for a call: query, key, value [B, H, S, d] and, where there is one, a bias to the scores or a
# boolean mask of them, [B or 1, H or 1, S, T].
DOMAIN, MARKER = "backbone", "Attention"


class WholeAttention(TorchFunctionMode):
    """While this is active, attention becomes a marker, or plain matrix products where a marker cannot say it.

    Attributes:
        markers: How many calls became markers.
        left: How many did not, and are written out as products and a softmax.
    """

    def __init__(self, *, mark: bool = True) -> None:
        super().__init__()
        self.markers = self.left = 0
        self._mark = mark

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.multi_head_attention_forward:  # torch turns this mode off while it runs
            with mock.patch.object(F, "scaled_dot_product_attention", self._replace):
                return func(*args, **given)
        return self._replace(*args, **given) if func is SDPA else func(*args, **given)

    def _replace(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any) -> Tensor:
        masked = bool(args) or given.get("attn_mask") is not None
        if self._mark and query.ndim in (3, 5) and not masked:  # heads in two dimensions, or one without a dimension
            four = [t.flatten(0, 1) if t.ndim == 5 else t.unsqueeze(1) for t in (query, key, value)]
            if _sayable(four[0], four[1], four[2], **given):
                return self._replace(four[0], four[1], four[2], **given).reshape(*query.shape[:-1], value.shape[-1])
        if self._mark and _sayable(query, key, value, *args, **given):
            self.markers += 1
            return mark(query, key, value, *args, **given)
        self.left += 1
        run = SDPA if query.ndim == 4 else attention
        return run(query, key, value, *args, **given)


def _sayable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,  # noqa: ARG001
    enable_gqa: bool = False,
) -> bool:
    """Return whether a marker says what the call does: heads of known number and width, and at most a bias."""
    if dropout_p or is_causal or enable_gqa or query.dtype != torch.float32:
        return False
    if (query.ndim, key.ndim, value.ndim) != (4, 4, 4):
        return False
    sides = (query.shape[1], query.shape[3], key.shape[1], value.shape[1], value.shape[3])
    if any(type(side) is not int for side in sides) or len({query.shape[1], key.shape[1], value.shape[1]}) > 1:
        return False
    # Batches that torch would broadcast stay with torch. Asked so, a symbolic batch is not bound to anything.
    if not all(statically_known_true(query.shape[0] == other.shape[0]) for other in (key, value)):
        return False
    return attn_mask is None or attn_mask.dtype in (torch.float32, torch.bool)


def mark(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,  # noqa: ARG001
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> Tensor:
    """Return a tensor of the result's shape that stands for the call in the exported program."""
    inputs = [query, key, value]
    if attn_mask is not None:
        inputs.append(_spread(attn_mask, query.shape[-2], key.shape[-2]))
    factor = scale if scale is not None else query.shape[-1] ** -0.5
    shape = (*query.shape[:-1], value.shape[-1])
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MARKER}", inputs, {"scale": float(factor)}, dtype=query.dtype, shape=shape, version=1
    )


def _spread(mask: Tensor, rows: Any, columns: Any) -> Tensor:
    """Return the mask with four dimensions, of which only the first two are left to broadcast."""
    mask = mask[(None,) * (4 - mask.ndim)]
    if statically_known_true(mask.shape[2] == rows) and statically_known_true(mask.shape[3] == columns):
        return mask
    return mask.expand(mask.shape[0], mask.shape[1], rows, columns)


def ensure_every_call_seen(program: torch.onnx.ONNXProgram) -> None:
    """Raise if the program holds a call of attention that should have become a marker, and did not.

    Raises:
        ExportError: A call reached the exporter past `WholeAttention`.
    """
    exported = program.exported_program
    assert exported is not None
    kind = torch.ops.aten.scaled_dot_product_attention.default
    calls = [node for node in exported.graph.nodes if node.op == "call_function" and node.target is kind]
    values = [([_value(a) for a in call.args], {k: _value(v) for k, v in call.kwargs.items()}) for call in calls]
    missed = sum(_sayable(*args, **kwargs) for args, kwargs in values)
    if missed:
        raise ExportError(f"{missed} calls of scaled_dot_product_attention were exported without being seen.")


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what `torch.nn.functional.scaled_dot_product_attention` returns for the same arguments, at inference.

    Raises:
        NotImplementedError: Dropout or grouped queries, which inference with such ranks does not use.
    """
    if dropout_p or enable_gqa:
        raise NotImplementedError("attention of tensors that are not 4-D, with dropout or grouped queries")
    factor = scale if scale is not None else query.shape[-1] ** -0.5
    weights = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        weights = (
            weights.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else weights + attn_mask
        )
    return weights.softmax(-1) @ value
