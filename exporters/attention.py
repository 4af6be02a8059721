"""Attention kept whole through export: one node per call, which each target lowers to what it runs best.

torch's ONNX exporter writes scaled_dot_product_attention out as matrix products and a softmax, from which no optimiser
finds its way back, and translates it for 4-D tensors only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The operator that stands for a call: query, key, value [B, H, S, d] and, where there is one, a bias to the scores.
DOMAIN, MARKER = "backbone", "Attention"


class WholeAttention(TorchFunctionMode):
    """While this is active, attention becomes a marker, or plain matrix products where a marker cannot say it.

    Attributes:
        markers: How many calls became markers.
    """

    def __init__(self, *, mark: bool = True) -> None:
        super().__init__()
        self.markers = 0
        self._mark = mark

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        if self._mark and _sayable(*args, **given):
            self.markers += 1
            return mark(*args, **given)
        query = args[0] if args else given["query"]
        return func(*args, **given) if query.ndim == 4 else attention(*args, **given)


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
    if dropout_p or is_causal or enable_gqa or query.ndim != 4 or query.dtype != torch.float32:
        return False
    sides = (query.shape[1], query.shape[3], key.shape[1], value.shape[1], value.shape[3])
    if any(type(side) is not int for side in sides) or len({query.shape[1], key.shape[1], value.shape[1]}) > 1:
        return False
    return attn_mask is None or (attn_mask.dtype == torch.float32 and attn_mask.ndim == 4)


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
    inputs = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    factor = scale if scale is not None else query.shape[-1] ** -0.5
    shape = (*query.shape[:-1], value.shape[-1])
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MARKER}", inputs, {"scale": float(factor)}, dtype=query.dtype, shape=shape, version=1
    )


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
