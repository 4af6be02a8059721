"""The two shapes a backbone's output takes, made of the parts of a Vision Transformer of the transformers library.

Stem, blocks and final norm are its own modules; its `forward` is not used, for there the position embedding is
resampled by rules that depend on whether somebody is tracing. The numbers are the same, bit for bit at a fixed size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runtime.position_resampling import resample


class TokenEmbedding(nn.Module):
    """One vector per image, [B, 3, H, W] to [B, D]: the CLS token after the final norm.

    With `include_patch_tokens` the mean of the patch tokens is appended, [B, 2 D]; registers are left out of it.
    """

    def __init__(
        self, model: nn.Module, image_size: tuple[int, int] | None, *, include_patch_tokens: bool = False
    ) -> None:
        super().__init__()
        self.stem = Stem(model, image_size)
        self.blocks = blocks_of(model)
        self.norm = _norm_of(model)
        self.include_patch_tokens = include_patch_tokens

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding of each image."""
        tokens: Tensor = self.stem(images)
        for block in self.blocks:
            tokens = _run(block, tokens)
        tokens = self.norm(tokens)
        if not self.include_patch_tokens:
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, 1 + self.stem.registers :].mean(1)], dim=-1)


class TokenMaps(nn.Module):
    """Feature maps of chosen blocks, [B, 3, H, W] to a list of [B, C, h, w] in ascending block order.

    The last block's map has passed the final norm (it is `last_hidden_state`, what eva gives for `out_indices=1`);
    earlier maps are what their blocks return. CLS and registers are left out; what lies behind the last chosen block
    is not part of the module.

    Attributes:
        indices: The block of each map, counted from 0.
        normed: Per map, whether the final norm was applied to it.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None, indices: Sequence[int]) -> None:
        super().__init__()
        blocks = blocks_of(model)
        self.indices = sorted(set(indices))
        self.normed = [index == len(blocks) - 1 for index in self.indices]
        self.stem = Stem(model, image_size)
        self.blocks = blocks[: self.indices[-1] + 1]
        self.norm = _norm_of(model) if self.normed[-1] else nn.Identity()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per chosen block."""
        tokens: Tensor = self.stem(images)
        taken = []
        for index, block in enumerate(self.blocks):
            tokens = _run(block, tokens)
            if index in self.indices:
                taken.append(tokens)
        taken[-1] = self.norm(taken[-1])
        return [self._map(tokens, self.stem.grid(images)) for tokens in taken]

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, 1 + self.stem.registers :].transpose(1, 2)
        return patches.reshape(patches.shape[0], patches.shape[1], *grid)


class Stem(nn.Module):
    """Images to what enters the first block: CLS, registers and patches, [B, 1 + registers + h w, D].

    For an image size in pixels the position embedding is resampled once, by transformers' own code for the class; for
    `None` in every forward, by the same rule.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None) -> None:
        super().__init__()
        config: Any = model.config
        embeddings: Any = model.embeddings
        self.patch_size: int = config.patch_size
        self.native: int = config.image_size // config.patch_size
        self.registers: int = getattr(config, "num_register_tokens", 0)
        self.dynamic = image_size is None
        if image_size is not None:
            _bake_positions(embeddings, image_size)
        self.embeddings = embeddings

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return how many patches `images` have, (h, w)."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens of each image."""
        embeddings: Any = self.embeddings
        patches = embeddings.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
        cls = embeddings.cls_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self._positions(images)
        if not self.registers:
            return tokens
        registers = embeddings.register_tokens.expand(images.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def _positions(self, images: Tensor) -> Tensor:
        embeddings: Any = self.embeddings
        table: Tensor = embeddings.position_embeddings
        if not self.dynamic:
            return table
        # Of transformers' classes only the one with registers antialiases.
        patches = resample(table[:, 1:], self.native, self.grid(images), antialias=self.registers > 0)
        return torch.cat([table[:, :1], patches], dim=1)


def blocks_of(model: Any) -> nn.ModuleList:
    """Return the transformer blocks, wherever this release of transformers keeps them."""
    blocks: nn.ModuleList = model.layers if hasattr(model, "layers") else model.encoder.layer
    return blocks


def drop_unused(model: nn.Module) -> None:
    """Remove the mask token: it is for training, and no output depends on it."""
    embeddings: Any = model.embeddings
    embeddings.mask_token = None


def _norm_of(model: nn.Module) -> nn.Module:
    norm = model.layernorm
    assert isinstance(norm, nn.Module)
    return norm


def _bake_positions(embeddings: Any, size: tuple[int, int]) -> None:
    table, patch = embeddings.position_embeddings, embeddings.patch_size
    tokens = 1 + (size[0] // patch) * (size[1] // patch)
    with torch.no_grad():
        baked = embeddings.interpolate_pos_encoding(table.new_empty(1, tokens, table.shape[-1]), *size)
    embeddings.position_embeddings = nn.Parameter(baked.clone(), requires_grad=table.requires_grad)


def _run(block: nn.Module, tokens: Tensor) -> Tensor:
    output = block(tokens)
    # transformers 4 returns a tuple whose further entries are attention weights.
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
