"""Mahmood Lab: UNI (Chen et al. 2024, Nature Medicine) and UNI 2; model cards MahmoodLab/uni and MahmoodLab/UNI2-h."""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model

LICENCE = "CC-BY-NC-ND-4.0"
PREPROCESSING = Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


@register_model(
    "pathology/mahmood_uni",
    preprocessing=PREPROCESSING,
    source=HubFile("MahmoodLab/uni"),
    licence=LICENCE,
    gated=True,
    depth=24,
    patch_size=16,
)
def mahmood_uni(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """UNI, ViT-L/16: [B, 1024]."""
    # The hub's config.json keeps init_values out of model_args: without it LayerScale would be missing.
    return timm_vit("vit_large_patch16_224", weights, out_indices, image_size, init_values=1e-5)


@register_model(
    "pathology/mahmood_uni2_h",
    preprocessing=PREPROCESSING,
    source=HubFile("MahmoodLab/UNI2-h"),
    licence=LICENCE,
    gated=True,
    depth=24,
    patch_size=14,
)
def mahmood_uni2_h(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """UNI 2, ViT-H/14 with SwiGLU and 8 registers: [B, 1536]."""
    from timm.layers import SwiGLUPacked
    from torch import nn

    return timm_vit(
        "vit_giant_patch14_224",
        weights,
        out_indices,
        image_size,
        depth=24,
        num_heads=24,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        init_values=1e-5,
        no_embed_class=True,
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        reg_tokens=8,
    )
