"""HKUST: GPFM (Ma et al. 2024, arXiv:2407.18449) and mSTAR (Xu et al. 2025, Nature Communications).

Repositories birkhoffkiki/GPFM and Innse/mSTAR. The hub's configuration of mSTAR is timm's own for ViT-L; its authors'
recipe (ImageNet's mean and std, bilinear resize) is declared here.
"""

import re
from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing, Url
from runtime.registry import register_model

_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")


@register_model(
    "pathology/hkust_gpfm",
    preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=Url(
        "https://github.com/birkhoffkiki/GPFM/releases/download/ckpt/GPFM.pth",
        md5="0dc7e345de84f385d09c8c782b4b3236",
    ),
    licence="CC-BY-NC-ND-4.0",
    depth=24,
    patch_size=14,
)
def hkust_gpfm(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """GPFM, ViT-L/14: [B, 1024]."""
    return timm_vit(
        "vit_large_patch14_dinov2",
        weights,
        out_indices,
        image_size,
        img_size=224,
        init_values=1e-5,
        adapt=teacher_to_timm,
    )


def teacher_to_timm(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the teacher's backbone under timm's keys.

    The training checkpoint keeps `teacher` weights named `backbone.blocks.<chunk>.<i>.…`, beside a projection head and
    a mask token that inference does not use.
    """
    teacher = checkpoint.get("teacher", checkpoint)
    tensors: dict[str, Any] = {}
    for key, value in teacher.items():
        name = key.removeprefix("backbone.")
        if name.startswith("dino_head.") or name == "mask_token":
            continue
        tensors[_CHUNKED_BLOCK.sub(r"blocks.\1.", name)] = value
    return tensors


@register_model(
    "pathology/hkust_mstar",
    aliases=("mstar",),
    preprocessing=Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("Wangyh/mSTAR"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    depth=24,
    patch_size=16,
)
def hkust_mstar(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """mSTAR, ViT-L/16: [B, 1024]."""
    return timm_vit("vit_large_patch16_224", weights, out_indices, image_size, init_values=1e-5)
