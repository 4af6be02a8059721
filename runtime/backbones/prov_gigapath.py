"""Providence and Microsoft: the tile encoder of Prov-GigaPath (Xu et al. 2024, Nature)."""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model


@register_model(
    "pathology/prov_gigapath",
    preprocessing=Preprocessing(resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("prov-gigapath/prov-gigapath", filenames=("pytorch_model.bin",)),
    licence="Apache-2.0, with conditions",
    gated=True,
    depth=40,
    patch_size=16,
)
def prov_gigapath(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """ViT-g with patches of 16 (in spite of timm's name for it): [B, 1536]."""
    return timm_vit(
        "vit_giant_patch14_dinov2",
        weights,
        out_indices,
        image_size,
        img_size=224,
        patch_size=16,
        embed_dim=1536,
        depth=40,
        num_heads=24,
        init_values=1e-5,
        mlp_ratio=5.33334,
    )
