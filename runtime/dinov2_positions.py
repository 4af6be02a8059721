"""The position embedding of DINOv2 without registers at other sizes, as its own code resamples it.

Bicubic without antialiasing, and with a scale that is not exactly the ratio of the sizes: 0.1 is added to the number of
patches that is aimed at (facebookresearch/dino, issue 8), so every patch is read from a slightly shifted place. At the
native size the table is used as it is. timm's and transformers' rules give other numbers.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runtime.position_resampling import count_of, resample

OFFSET = 0.1


@torch.no_grad()
def bake(model: Any, size: tuple[int, int]) -> None:
    """Give a timm Vision Transformer the position embedding for images of `size` (height, width) pixels."""
    prefix, native, table = model.pos_embed[:, :1], model.patch_embed.grid_size, model.pos_embed[:, 1:]
    model.set_input_size(img_size=size)
    grid = model.patch_embed.grid_size
    if grid != native:
        scale = tuple((patches + OFFSET) / side for patches, side in zip(grid, native, strict=True))
        square = table.unflatten(1, native).permute(0, 3, 1, 2)
        resampled = nn.functional.interpolate(square, scale_factor=scale, mode="bicubic")
        table = resampled.permute(0, 2, 3, 1).flatten(1, 2)
    model.pos_embed = nn.Parameter(torch.cat([prefix, table], dim=1), requires_grad=model.pos_embed.requires_grad)


def follow_size(model: Any) -> None:
    """Make a timm Vision Transformer resample its position embedding by that rule in every forward."""
    model._pos_embed = partial(_embed, model)


def _embed(model: Any, patches: Tensor) -> Tensor:
    """Stand in for timm's `_pos_embed`: [B, h, w, D] to tokens [B, 1 + h w, D]."""
    grid, side = (patches.shape[1], patches.shape[2]), model.patch_embed.grid_size[0]
    native = (count_of(grid[0]) == side) & (count_of(grid[1]) == side)
    offset = torch.where(native, 0.0, OFFSET)
    table = resample(model.pos_embed[:, 1:], side, grid, offset=offset)
    cls = model.cls_token.expand(patches.shape[0], -1, -1)
    tokens = torch.cat([cls, patches.flatten(1, 2)], dim=1)
    return tokens + torch.cat([model.pos_embed[:, :1], table], dim=1)
