"""Owkin: Phikon (Filiot et al. 2023, medRxiv 2023.07.21.23292757) and Phikon-v2 (2024, arXiv:2409.09173)."""

from typing import Any

from runtime.backbones.transformers_vit import transformers_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model

LICENCE = "Owkin non-commercial licence"


@register_model(
    "pathology/owkin_phikon",
    preprocessing=Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("owkin/phikon"),
    licence=LICENCE,
    depth=12,
    patch_size=16,
    extra="transformers",
)
def owkin_phikon(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """Phikon, ViT-B/16: [B, 768].

    At 224 pixels the published numbers; at other sizes the position embedding is resampled, where eva raises.
    """
    return transformers_vit("ViT", weights, out_indices, image_size)


@register_model(
    "pathology/owkin_phikon_v2",
    preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("owkin/phikon-v2"),
    licence=LICENCE,
    depth=24,
    patch_size=16,
    extra="transformers",
)
def owkin_phikon_v2(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """Phikon-v2, a DINOv2 ViT-L with patches of 16: [B, 1024]."""
    return transformers_vit(
        "Dinov2",
        weights,
        out_indices,
        image_size,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=16,
    )
