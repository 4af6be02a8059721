"""Meta AI: DINOv2 (Oquab et al. 2023, arXiv:2304.07193), also with registers (Darcet et al. 2023, arXiv:2309.16588).

Weights: the files of facebookresearch/dinov2; its code is not run, and no checksum is published. The position embedding
is for 518 pixels, where training ended. The declared size is 224 all the same: it is that of the authors' evaluation
(shorter side 256, centre 224) and of eva's tiles, for a sixth of the tokens. `image_size=518` gives the native one.

Away from 518 the position embedding is resampled as the authors' code does it: bicubic with an offset of 0.1 without
registers, antialiased and without offset with them (which is timm's rule, too).
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Url
from runtime.registry import register_model

RELEASE = "https://dl.fbaipublicfiles.com/dinov2"
NATIVE_SIZE = 518


def _facts(variant: str, depth: int) -> dict[str, Any]:
    model = f"dinov2_{variant}"
    file = model.replace("_reg", "_reg4")
    return {
        "aliases": (f"torchhub/facebookresearch/dinov2:main:{model}",),
        "preprocessing": Preprocessing(resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "source": Url(f"{RELEASE}/{model.removesuffix('_reg')}/{file}_pretrain.pth"),
        "licence": "Apache-2.0",
        "depth": depth,
        "patch_size": 14,
    }


@register_model("universal/dinov2_vits14", **_facts("vits14", depth=12))
def dinov2_vits14(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-S/14: [B, 384]."""
    return _with_offset("vit_small_patch14_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitb14", **_facts("vitb14", depth=12))
def dinov2_vitb14(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-B/14: [B, 768]."""
    return _with_offset("vit_base_patch14_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitl14", **_facts("vitl14", depth=24))
def dinov2_vitl14(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-L/14: [B, 1024]."""
    return _with_offset("vit_large_patch14_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitg14", **_facts("vitg14", depth=40))
def dinov2_vitg14(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-g/14 with SwiGLU: [B, 1536]."""
    return _with_offset("vit_giant_patch14_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vits14_reg", **_facts("vits14_reg", depth=12))
def dinov2_vits14_reg(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-S/14 with 4 registers: [B, 384]."""
    return timm_vit("vit_small_patch14_reg4_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitb14_reg", **_facts("vitb14_reg", depth=12))
def dinov2_vitb14_reg(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-B/14 with 4 registers: [B, 768]."""
    return timm_vit("vit_base_patch14_reg4_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitl14_reg", **_facts("vitl14_reg", depth=24))
def dinov2_vitl14_reg(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-L/14 with 4 registers: [B, 1024]."""
    return timm_vit("vit_large_patch14_reg4_dinov2", weights, out_indices, image_size)


@register_model("universal/dinov2_vitg14_reg", **_facts("vitg14_reg", depth=40))
def dinov2_vitg14_reg(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-g/14 with SwiGLU and 4 registers: [B, 1536]."""
    return timm_vit("vit_giant_patch14_reg4_dinov2", weights, out_indices, image_size)


def _with_offset(architecture: str, weights: Any, out_indices: Any, image_size: Any, **kwargs: Any) -> Any:
    """Return the backbone at its native size, then give it the authors' rule for the size asked for."""
    from runtime.dinov2_positions import bake, follow_size

    dynamic = image_size == "dynamic"
    module = timm_vit(architecture, weights, out_indices, "dynamic" if dynamic else NATIVE_SIZE, **kwargs)
    if dynamic:
        follow_size(module.model)
    else:
        bake(module.model, (image_size, image_size) if isinstance(image_size, int) else tuple(image_size))
    return module
