"""Volumes [B, 1, D, H, W]: the two shapes of an encoder's output, and the encoder of SegResNet with MONAI's keys."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.segresnet_block import ResBlock, get_conv_layer
from torch import Tensor, nn


class VolumeEmbedding(nn.Module):
    """The means over space of chosen feature maps, concatenated: [B, 1, D, H, W] to [B, sum of their channels]."""

    def __init__(self, encoder: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.maps = VolumeMaps(encoder, indices)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the embedding of each volume."""
        # One axis after another: onnxruntime loses digits in the sum of a whole map.
        return torch.cat([features.mean(4).mean(3).mean(2) for features in self.maps(volumes)], dim=1)


class VolumeMaps(nn.Module):
    """Chosen feature maps, [B, 1, D, H, W] to a list of [B, C, d, h, w] from shallow to deep.

    What no chosen map needs is removed from the encoder. No norm follows the blocks.
    """

    def __init__(self, encoder: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.indices = sorted(indices)
        self.normed = [False] * len(self.indices)
        chosen: Any = encoder
        chosen.prune(self.indices)
        self.encoder = encoder

    def forward(self, volumes: Tensor) -> list[Tensor]:
        """Return one map per chosen index."""
        maps: list[Tensor] = self.encoder(volumes, self.indices)
        return maps


class SegResNetEncoder(nn.Module):
    """The encoder half of SegResNet (Myronenko 2018, arXiv:1810.11654) as eva composes it: 4 maps.

    With F = `filters` they have F, 2 F, 4 F and 8 F channels, at 1, 1/2, 1/4 and 1/8 of the volume's sides (rounded
    up). Any volume size will do.
    """

    BLOCKS = (1, 2, 2, 4)

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.convInit = get_conv_layer(3, 1, filters)
        self.down_layers = nn.ModuleList(
            _down(filters * 2**stage, blocks, first=stage == 0) for stage, blocks in enumerate(self.BLOCKS)
        )

    def prune(self, indices: Sequence[int]) -> None:
        """Remove what lies behind the last of `indices`."""
        self.down_layers = self.down_layers[: max(indices) + 1]

    def forward(self, volumes: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Return the maps of `indices`."""
        features = self.convInit(volumes)
        maps = []
        for layer in self.down_layers:
            features = layer(features)
            maps.append(features)
        return [maps[index] for index in indices]


def _down(channels: int, blocks: int, *, first: bool) -> nn.Module:
    entry: nn.Module = nn.Identity() if first else get_conv_layer(3, channels // 2, channels, stride=2)
    norm = ("GROUP", {"num_groups": 8})
    return nn.Sequential(entry, *(ResBlock(3, channels, norm=norm) for _ in range(blocks)))
