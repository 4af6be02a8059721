"""kaiko.ai: its ViTs (2024, arXiv:2404.15217) and Midnight-12k (Karasikov et al. 2025, arXiv:2504.05186).

Weights of the ViTs: the files that the torch.hub repository kaiko-ai/towards_large_pathology_fms points to; its code is
not run. No checksum is published. Normalisation is 0.5/0.5 as its README says (`pretrained_cfg` shows ImageNet's by
mistake).
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.backbones.transformers_vit import transformers_vit
from runtime.facts import HALF, HubFile, Preprocessing, Url
from runtime.registry import register_model

RELEASE = "https://github.com/kaiko-ai/towards_large_pathology_fms/releases/download/0.0.1"
LICENCE = "Kaiko Non-Commercial Public License v1 (May 2024)"
PREPROCESSING = Preprocessing(interpolation="bilinear", mean=HALF, std=HALF)


def _facts(variant: str, depth: int, patch_size: int) -> dict[str, Any]:
    return {
        "aliases": (
            f"kaiko_{variant}",
            f"torchhub/kaiko-ai/towards_large_pathology_fms:{variant}",
        ),
        "preprocessing": PREPROCESSING,
        "source": Url(f"{RELEASE}/{variant}.pth"),
        "licence": LICENCE,
        "depth": depth,
        "patch_size": patch_size,
    }


@register_model("pathology/kaiko_vits16", **_facts("vits16", depth=12, patch_size=16))
def kaiko_vits16(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-S/16: [B, 384]."""
    return timm_vit("vit_small_patch16_224", weights, out_indices, image_size)


@register_model("pathology/kaiko_vits8", **_facts("vits8", depth=12, patch_size=8))
def kaiko_vits8(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-S/8: [B, 384]."""
    return timm_vit("vit_small_patch8_224", weights, out_indices, image_size)


@register_model("pathology/kaiko_vitb16", **_facts("vitb16", depth=12, patch_size=16))
def kaiko_vitb16(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-B/16: [B, 768]."""
    return timm_vit("vit_base_patch16_224", weights, out_indices, image_size)


@register_model("pathology/kaiko_vitb8", **_facts("vitb8", depth=12, patch_size=8))
def kaiko_vitb8(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-B/8: [B, 768]."""
    return timm_vit("vit_base_patch8_224", weights, out_indices, image_size)


@register_model("pathology/kaiko_vitl14", **_facts("vitl14", depth=24, patch_size=14))
def kaiko_vitl14(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-L/14 with 4 registers: [B, 1024].

    Trained at 518 pixels; the position embedding is resampled to the size used.
    """
    return timm_vit("vit_large_patch14_reg4_dinov2", weights, out_indices, image_size)


@register_model(
    "pathology/kaiko_midnight_12k",
    preprocessing=PREPROCESSING,
    source=HubFile("kaiko-ai/midnight"),
    licence="MIT",
    depth=40,
    patch_size=14,
    extra="transformers",
)
def kaiko_midnight_12k(
    weights: Any, out_indices: Any = None, image_size: Any = 224, include_patch_tokens: bool = False
) -> Any:
    """Midnight-12k, DINOv2 ViT-g/14: CLS [B, 1536] as in eva; with `include_patch_tokens` CLS and mean token [B, 3072].

    The authors always use both. The position embedding is for 518 pixels and resampled to the size used, by
    transformers' rule (bicubic, not antialiased).
    """
    return transformers_vit(
        "Dinov2",
        weights,
        out_indices,
        image_size,
        include_patch_tokens=include_patch_tokens,
        native_size=518,
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=24,
        patch_size=14,
        use_swiglu_ffn=True,
    )
