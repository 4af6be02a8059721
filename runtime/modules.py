"""The two shapes a backbone's output takes, as thin wrappers around a timm model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    """One vector per image, [B, 3, H, W] to [B, D]: the model's own pooling, after its final norm.

    A model that returns all its tokens gives the CLS token; with `include_patch_tokens` the mean of the patch
    tokens is appended, [B, 2 D]. Register tokens are left out of that mean, as the publishers of these models do
    (eva 0.4.5 averages them in).
    """

    def __init__(self, model: nn.Module, include_patch_tokens: bool = False) -> None:
        super().__init__()
        self.model = model
        self.include_patch_tokens = include_patch_tokens

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding of each image."""
        output: Tensor = self.model(images)
        if output.ndim == 2:
            return output
        if not self.include_patch_tokens:
            return output[:, 0]
        model: Any = self.model
        return torch.cat([output[:, 0], output[:, model.num_prefix_tokens :].mean(1)], dim=-1)


class FeatureMaps(nn.Module):
    """Feature maps of chosen blocks, [B, 3, H, W] to a list of [B, C, h, w] in ascending block order.

    As timm's `features_only`: the final norm is not applied, prefix tokens are left out, and what lies behind the
    last chosen block is removed from the model.

    Attributes:
        indices: The block of each map, counted from 0.
        normed: Per map, whether the final norm was applied to it.
    """

    def __init__(self, model: nn.Module, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        self.model = model
        timm_model: Any = model
        wanted = out_indices if isinstance(out_indices, int) else list(out_indices)
        self.indices: list[int] = timm_model.prune_intermediate_layers(wanted, prune_norm=True, prune_head=True)
        self.normed = [False] * len(self.indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per chosen block."""
        model: Any = self.model
        maps: list[Tensor] = model.forward_intermediates(
            images, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps


class TimmEmbedding(nn.Module):
    """One vector per image, [B, 3, H, W] to [B, D]: what any timm model gives without its classifier.

    Where timm leaves the pooling to the caller: the CLS token if there is one, else the mean over all positions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding of each image."""
        model: Any = self.model
        output: Tensor = model(images)
        if output.ndim == 4:
            return output.mean((1, 2) if _is_nhwc(model) else (2, 3))
        if output.ndim == 3:
            return output[:, 0] if getattr(model, "num_prefix_tokens", 0) else output.mean(1)
        return output


class TimmMaps(nn.Module):
    """Feature maps of timm's `features_only`, [B, 3, H, W] to a list of [B, C, h, w] in ascending order.

    Attributes:
        indices: Which maps, counted from the first.
        normed: Per map, whether a normalisation layer is its last.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.indices = list(indices)
        timm_model: Any = model
        names = [timm_model.feature_info.info[index]["module"] for index in self.indices]
        self.normed = [name.rpartition(".")[2].startswith("norm") for name in names]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per chosen index."""
        maps: list[Tensor] = self.model(images)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if _is_nhwc(self.model) else list(maps)


def _is_nhwc(model: Any) -> bool:
    return str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
