"""The encoder of Swin UNETR, assembled from MONAI's blocks; its state dict has MONAI's keys.

It is built for one volume size: the regions that a shifted window must not mix are worked out once, where MONAI's
`SwinTransformer` marks them anew in every forward (27 writes for each stage, on the device of the trace). The batch is
free.
"""

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.patchembedding import PatchEmbed
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import PatchMerging, SwinTransformerBlock, get_window_size, window_partition
from torch import Tensor, nn
from torch.nn import functional

Sides = tuple[int, int, int]

WINDOW: Sides = (7, 7, 7)
SHIFT: Sides = (3, 3, 3)
HEADS = (3, 6, 12, 24)


class SwinUNETREncoder(nn.Module):
    """The encoder half of Swin UNETR (Hatamizadeh et al. 2022, arXiv:2201.01266) as eva composes it: 6 maps.

    Map 0 is a convolution block on the volume itself, maps 1, 2, 3 and 5 are such blocks on the Swin Transformer's
    states after 0, 1, 2 and 4 stages, map 4 is the plain state after 3 stages. With F = `feature_size` they have F, F,
    2 F, 4 F, 8 F and 16 F channels, at 1, 1/2, 1/4, 1/8, 1/16 and 1/32 of the volume's sides (rounded up).
    """

    # The block that makes each map; the state itself is map 4.
    BLOCKS = ("encoder1", "encoder2", "encoder3", "encoder4", None, "encoder10")

    def __init__(self, feature_size: int, volume: Sides, *, use_v2: bool) -> None:
        super().__init__()
        self.swinViT = SwinTransformer(feature_size, volume, use_v2=use_v2)
        self.encoder1 = _residual(1, feature_size)
        self.encoder2 = _residual(feature_size, feature_size)
        self.encoder3 = _residual(2 * feature_size, 2 * feature_size)
        self.encoder4 = _residual(4 * feature_size, 4 * feature_size)
        self.encoder10 = _residual(16 * feature_size, 16 * feature_size)

    def prune(self, indices: Sequence[int]) -> None:
        """Remove what the maps of `indices` do not need."""
        for index, name in enumerate(self.BLOCKS):
            if name is not None and index not in indices:
                delattr(self, name)
        self.swinViT.prune(max(indices))

    def forward(self, volumes: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Return the maps of `indices`."""
        sources = [volumes, *self.swinViT(volumes, max(indices))]
        return [self._map(index, sources[index]) for index in indices]

    def _map(self, index: int, source: Tensor) -> Tensor:
        name = self.BLOCKS[index]
        features: Tensor = source if name is None else getattr(self, name)(source)
        return features


class SwinTransformer(nn.Module):
    """MONAI's Swin Transformer: a patch embedding (2 voxels) and four stages of two blocks, for one volume size.

    With `use_v2` a residual convolution block goes before each stage (Swin UNETR V2, He et al. 2023).
    """

    def __init__(self, dim: int, volume: Sides, *, use_v2: bool) -> None:
        super().__init__()
        self.use_v2 = use_v2
        self.patch_embed = PatchEmbed(patch_size=2, in_chans=1, embed_dim=dim, norm_layer=None, spatial_dims=3)
        for stage, heads in enumerate(HEADS):
            volume = _halved(volume)
            width = dim * 2**stage
            # Lists of one, for the sake of MONAI's keys.
            self.add_module(f"layers{stage + 1}", nn.ModuleList([SwinStage(width, heads, volume)]))
            if use_v2:
                self.add_module(f"layers{stage + 1}c", nn.ModuleList([_residual(width, width)]))

    def prune(self, states: int) -> None:
        """Remove what lies behind the first `states` states."""
        for stage in range(max(states, 1), len(HEADS) + 1):
            delattr(self, f"layers{stage}")
            if self.use_v2:
                delattr(self, f"layers{stage}c")
        if states == 0:
            del self.patch_embed

    def forward(self, volumes: Tensor, states: int) -> list[Tensor]:
        """Return the first `states` states, each normalised over its channels."""
        if states == 0:
            return []
        features = self.patch_embed(volumes)
        found = [_normalised(features)]
        for stage in range(1, states):
            if self.use_v2:
                features = getattr(self, f"layers{stage}c")[0](features.contiguous())
            features = getattr(self, f"layers{stage}")[0](features.contiguous())
            found.append(_normalised(features))
        return found


class SwinStage(nn.Module):
    """Two blocks of window attention, the second one's windows shifted, then a merging of 2 x 2 x 2 patches.

    Args:
        dim: Channels; the output has twice as many.
        heads: Of the attention.
        grid: Depth, height and width, in patches.
    """

    regions: Tensor | None

    def __init__(self, dim: int, heads: int, grid: Sides) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim=dim, num_heads=heads, window_size=WINDOW, shift_size=shift)
            for shift in ((0, 0, 0), SHIFT)
        )
        self.downsample = PatchMerging(dim=dim, spatial_dims=3)
        self.register_buffer("regions", window_regions(grid), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, 2 C, d/2, h/2, w/2] for [B, C, d, h, w]."""
        mask = self._mask()
        features = features.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            features = block(features, mask)
        merged: Tensor = self.downsample(features)
        return merged.permute(0, 4, 1, 2, 3)

    def _mask(self) -> Tensor | None:
        # Made in the forward: stored, the masks of a 96^3 volume would outweigh the smallest of these encoders.
        if self.regions is None:
            return None
        return torch.where(self.regions[:, :, None] == self.regions[:, None, :], 0.0, -100.0)


def window_regions(grid: Sides) -> Tensor | None:
    """Return which region each token of each shifted window belongs to, [windows, tokens]; `None` without a shift.

    Rolling the grid brings its two ends together in the last windows: tokens attend to their own region only. Regions
    are numbers that differ; they are floats because weight data is.
    """
    window, shift = get_window_size(grid, WINDOW, SHIFT)
    if not any(shift):
        return None
    depth, height, width = (_axis(*axis) for axis in zip(grid, window, shift, strict=True))
    numbers = 9 * depth[:, None, None] + 3 * height[:, None] + width
    regions: Tensor = window_partition(numbers[None, ..., None], window)
    return regions.squeeze(-1)


def _axis(length: int, window: int, shift: int) -> Tensor:
    """Return the region of each position of one axis that was padded to whole windows, then rolled by `shift`."""
    padded = math.ceil(length / window) * window
    regions = torch.zeros(padded)
    if shift:
        regions[-window:] = 1
        regions[-shift:] = 2
    return regions


def _halved(grid: Sides) -> Sides:
    depth, height, width = (math.ceil(side / 2) for side in grid)
    return depth, height, width


def _normalised(features: Tensor) -> Tensor:
    last = features.permute(0, 2, 3, 4, 1)
    return functional.layer_norm(last, [last.shape[-1]]).permute(0, 4, 1, 2, 3)


def _residual(channels: int, out: int) -> nn.Module:
    block: nn.Module = UnetrBasicBlock(3, channels, out, kernel_size=3, stride=1, norm_name="instance", res_block=True)
    return block
