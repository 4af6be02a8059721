"""Attention of any rank: torch's ONNX exporter translates scaled_dot_product_attention of 4-D tensors only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While this is active, attention of tensors that are not 4-D is written as matrix products and a softmax."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else given["query"]
            if query.ndim != 4:
                return attention(*args, **given)
        return func(*args, **given)


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
