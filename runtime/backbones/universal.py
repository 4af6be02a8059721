"""General-purpose Vision Transformers: DINO (Caron et al. 2021, arXiv:2104.14294) and randomly initialised ones.

Preprocessing of the DINO weights is timm's data configuration (bicubic, crop 0.9). The `_1chan` backbones take one grey
channel: the RGB stem is summed over its colours, as timm does; eva states no normalisation for them.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD, HubFile, LibraryInit, Preprocessing
from runtime.registry import register_model

RGB = Preprocessing(resize=248, mean=IMAGENET_MEAN, std=IMAGENET_STD)
GREY = Preprocessing(channels=1)
APACHE = "Apache-2.0"


@register_model(
    "universal/vit_small_patch16_224_random",
    aliases=("vits16_random",),
    preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=LibraryInit(),
    depth=12,
    patch_size=16,
)
def vit_small_patch16_224_random(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-S/16 as timm initialises it, from a fixed seed (eva draws it anew on every load): [B, 384]."""
    return timm_vit("vit_small_patch16_224.dino", weights, out_indices, image_size)


@register_model(
    "universal/vit_tiny_patch16_224_random",
    preprocessing=Preprocessing(mean=HALF, std=HALF),
    source=LibraryInit(),
    depth=12,
    patch_size=16,
)
def vit_tiny_patch16_224_random(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-Ti/16 as timm initialises it, from a fixed seed: [B, 192]."""
    return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size)


@register_model(
    "universal/vit_small_patch16_224_dino",
    aliases=("universal/vit_small_patch16_224_imagenet", "vits16_imagenet"),
    preprocessing=RGB,
    source=HubFile("timm/vit_small_patch16_224.dino"),
    licence=APACHE,
    depth=12,
    patch_size=16,
)
def vit_small_patch16_224_dino(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """DINO ViT-S/16 trained on ImageNet: [B, 384]."""
    return timm_vit("vit_small_patch16_224.dino", weights, out_indices, image_size)


@register_model(
    "universal/vit_small_patch16_224_dino_1chan",
    preprocessing=GREY,
    source=HubFile("timm/vit_small_patch16_224.dino"),
    licence=APACHE,
    depth=12,
    patch_size=16,
)
def vit_small_patch16_224_dino_1chan(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """DINO ViT-S/16 for one grey channel, [B, 1, H, W] to [B, 384]."""
    return timm_vit("vit_small_patch16_224.dino", weights, out_indices, image_size, in_chans=1, adapt=sum_over_colours)


@register_model(
    "universal/vit_base_patch16_224_dino_1chan",
    preprocessing=GREY,
    source=HubFile("timm/vit_base_patch16_224.dino"),
    licence=APACHE,
    depth=12,
    patch_size=16,
)
def vit_base_patch16_224_dino_1chan(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """DINO ViT-B/16 for one grey channel, [B, 1, H, W] to [B, 768]."""
    return timm_vit("vit_base_patch16_224.dino", weights, out_indices, image_size, in_chans=1, adapt=sum_over_colours)


def sum_over_colours(tensors: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the state dict with its RGB stem summed to one channel, by timm's own rule."""
    from timm.models import adapt_input_conv

    stem = "patch_embed.proj.weight"
    return {**tensors, stem: adapt_input_conv(1, tensors[stem])}
