"""Assembling a Vision Transformer of the transformers library: weights, image size, outputs. Imported on call."""

from typing import TYPE_CHECKING, Any

from runtime.errors import OptionError
from runtime.out_indices import canonical

if TYPE_CHECKING:
    from torch import nn

    from runtime.backbones.timm_vit import ImageSize
    from runtime.out_indices import OutIndices
    from runtime.weights import Weights


def transformers_vit(
    architecture: str,
    weights: "Weights",
    out_indices: "OutIndices",
    image_size: "ImageSize",
    *,
    include_patch_tokens: bool = False,
    native_size: int = 224,
    **config: Any,
) -> "nn.Module":
    """Return a stock transformers model as an embedding, or as feature maps when `out_indices` is given.

    A fixed `image_size` bakes the position embedding for that size, by transformers' own rule for the class (bicubic;
    antialiased in models with registers); `"dynamic"` resamples it in every forward, for any size that is a multiple
    of the patch.

    Args:
        architecture: `ViT`, `Dinov2` or `Dinov2WithRegisters`.
        weights: Fills the full model before anything is removed from it.
        out_indices: See `runtime.out_indices`.
        image_size: Pixels, or `"dynamic"`.
        include_patch_tokens: Append the mean patch token to the CLS token.
        native_size: Pixels that the published position embedding is for.
        **config: Fields of the architecture's configuration.

    Raises:
        OptionError: `include_patch_tokens` together with `out_indices`.
        OutIndicesError: The model has no such feature maps.
    """
    from runtime.backbones.transformers_keys import to_transformers
    from runtime.transformers_modules import TokenEmbedding, TokenMaps, blocks_of

    if out_indices is not None and include_patch_tokens:
        raise OptionError(
            "include_patch_tokens=True appends to the embedding and means nothing for feature maps: "
            "leave out include_patch_tokens or out_indices."
        )
    model = weights.construct(lambda: _create(architecture, image_size=native_size, **config), to_transformers)
    depth = len(blocks_of(model))
    wanted = canonical(out_indices, depth)
    if wanted is None:
        return TokenEmbedding(model, _pixels(image_size), include_patch_tokens=include_patch_tokens)
    return TokenMaps(model, _pixels(image_size), [depth + index for index in wanted])


def _pixels(image_size: "ImageSize") -> tuple[int, int] | None:
    if isinstance(image_size, str):
        return None
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _create(architecture: str, **config: Any) -> "nn.Module":
    import transformers

    from runtime.transformers_modules import drop_unused

    # torch's own attention: one operator, which exports cleanly.
    described = getattr(transformers, f"{architecture}Config")(attn_implementation="sdpa", **config)
    pooler = {"add_pooling_layer": False} if architecture == "ViT" else {}
    model: nn.Module = getattr(transformers, f"{architecture}Model")(described, **pooler)
    drop_unused(model)
    return model
