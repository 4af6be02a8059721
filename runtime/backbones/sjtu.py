"""Shanghai Jiao Tong University: the image tower of KEEP (Zhou et al. 2026, Cancer Cell; MAGIC-AI4Med/KEEP)."""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model

WIDTH = 768


@register_model(
    "pathology/sjtu_keep",
    aliases=("keep",),
    preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("Astaxanthin/KEEP"),
    licence="MIT",
    depth=24,
    patch_size=16,
)
def sjtu_keep(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """KEEP, ViT-L/16, its CLS token projected by two layers to unit length: [B, 768]."""
    return timm_vit(
        "vit_large_patch16_224",
        weights,
        out_indices,
        image_size,
        init_values=1e-5,
        head=_projection,
        adapt=keep_to_timm,
    )


def _projection(trunk: Any) -> Any:
    from torch import nn

    from runtime.pathology_layers import UnitLength

    return nn.Sequential(nn.Linear(trunk.num_features, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), UnitLength())


def keep_to_timm(tensors: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the image tower under timm's keys; LayerScale is named `weight` there, the text tower is left out."""
    adapted = {}
    for key, value in tensors.items():
        tower, _, name = key.partition(".")
        if tower == "visual_head":
            adapted[f"head.{name}"] = value
        elif tower == "visual":
            adapted[name.replace(".ls1.weight", ".ls1.gamma").replace(".ls2.weight", ".ls2.gamma")] = value
    return adapted
