"""What pathology encoders put in front of or behind a timm trunk."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F


class UnitLength(nn.Module):
    """Scales each embedding [B, D] to length 1."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the embedding over its Euclidean norm."""
        return F.normalize(embedding, dim=-1)


class MeanToken(nn.Module):
    """The mean of all tokens, [B, N, D] to [B, D]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean over the tokens, prefix tokens too."""
        return tokens.mean(1)


class AttentionalPooler(nn.Module):
    """One learned query that attends to all tokens, [B, N, C] to [B, D], as CoCa pools images (arXiv:2205.01917)."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, width))
        self.query_norm = nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(channels)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(channels, width)
        self.to_value = nn.Linear(channels, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the query gathers from the tokens."""
        tokens = self.token_norm(tokens)
        # Expanded by the tokens' own size, so that an export keeps the batch symbolic.
        query = self.to_query(self.query_norm(self.query)).expand(tokens.shape[0], 1, -1)
        pooled = F.scaled_dot_product_attention(
            self._split(query), self._split(self.to_key(tokens)), self._split(self.to_value(tokens))
        )
        gathered: Tensor = self.out(pooled.flatten(1))
        return gathered

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.view(tokens.shape[0], tokens.shape[1], self.heads, -1).transpose(1, 2)


class ConvStem(nn.Module):
    """CTransPath's patch embedding for timm's Swin, [B, 3, H, W] to [B, H/4, W/4, C]: two strided convolutions.

    Takes what timm passes to an `embed_layer`; `grid_size` is read by timm.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **kwargs: Any
    ) -> None:
        super().__init__()
        self.grid_size = tuple(side // patch_size for side in to_2tuple(img_size))
        narrow, wide = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            *_halved(in_chans, narrow), *_halved(narrow, wide), nn.Conv2d(wide, embed_dim, kernel_size=1)
        )
        self.norm = kwargs["norm_layer"](embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedded patches, channels last."""
        patches: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return patches


def _halved(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
