"""What a Vision Transformer of the transformers library gives, as plain tensors."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from runtime.errors import OptionError


class Pooled(nn.Module):
    """One vector per image, [B, C, H, W] to [B, D]: the CLS token after the final norm, or the model's pooler."""

    def __init__(self, model: nn.Module, output: str, patch: int) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding of each image."""
        given = _run(self.model, images)
        if self.output == "pooler":
            if given.get("pooler_output") is None:
                raise OptionError(f"output='pooler': {type(self.model).__name__} has no pooler_output. Take 'cls'.")
            return given.pooler_output  # type: ignore[no-any-return]
        tokens: Tensor = given.last_hidden_state
        if tokens.ndim != 3 or tokens.shape[1] == _patches(images, self.patch)[2]:
            raise OptionError(f"output='cls': {type(self.model).__name__} has no CLS token. Take output='pooler'.")
        return tokens[:, 0]


class HiddenMaps(nn.Module):
    """Feature maps of chosen blocks, [B, C, H, W] to a list of [B, C, h, w] in ascending block order.

    The last block's map has passed the final norm (it is `last_hidden_state`), as in the built-in backbones; earlier
    maps are what their blocks return. CLS and register tokens are left out.

    Attributes:
        indices: The block of each map, counted from 0.
        normed: Per map, whether the final norm was applied to it.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int], depth: int, patch: int) -> None:
        super().__init__()
        self.model = model
        self.indices = list(indices)
        self.normed = [index == depth - 1 for index in self.indices]
        self.patch = patch

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per chosen block."""
        given = _run(self.model, images, output_hidden_states=True)
        height, width, patches = _patches(images, self.patch)
        states = [
            given.last_hidden_state if final else given.hidden_states[index + 1]
            for index, final in zip(self.indices, self.normed, strict=True)
        ]
        chosen = [tokens[:, -patches:] for tokens in states]
        return [tokens.transpose(1, 2).unflatten(2, (height, width)) for tokens in chosen]


def _run(model: Any, images: Tensor, **arguments: Any) -> Any:
    """Return what `model` returns; some resample their position embedding for another size only when told to."""
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        own = model.config.image_size
        native = (own, own) if isinstance(own, int) else tuple(own)
        arguments["interpolate_pos_encoding"] = tuple(images.shape[-2:]) != native
    return model(images, **arguments)


def _patches(images: Tensor, patch: int) -> tuple[int, int, int]:
    height, width = images.shape[-2] // patch, images.shape[-1] // patch
    return height, width, height * width
