"""Lunit, "Benchmarking Self-Supervised Learning on Diverse Pathology Datasets" (2023, arXiv:2212.04690).

Weights: the release files of lunit-io/benchmark-ssl-pathology; no checksum is published. The same mean and std serve
the ResNets: LazySlide does so, the publisher states none for them alone.
"""

from typing import Any

from runtime.backbones.timm_resnet import resnet50
from runtime.backbones.timm_vit import timm_vit
from runtime.facts import Preprocessing, Url
from runtime.registry import register_model

RELEASE = "https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights"
LICENCE = "Lunit Inc. Public License (non-commercial)"
PREPROCESSING = Preprocessing(mean=(0.70322989, 0.53606487, 0.66096631), std=(0.21716536, 0.26081574, 0.20723464))


@register_model(
    "pathology/lunit_vits16",
    preprocessing=PREPROCESSING,
    source=Url(f"{RELEASE}/dino_vit_small_patch16_ep200.torch"),
    licence=LICENCE,
    depth=12,
    patch_size=16,
)
def lunit_vits16(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """DINO ViT-S/16: [B, 384]."""
    return timm_vit("vit_small_patch16_224.dino", weights, out_indices, image_size)


@register_model(
    "pathology/lunit_vits8",
    preprocessing=PREPROCESSING,
    source=Url(f"{RELEASE}/dino_vit_small_patch8_ep200.torch"),
    licence=LICENCE,
    depth=12,
    patch_size=8,
)
def lunit_vits8(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """DINO ViT-S/8: [B, 384]."""
    return timm_vit("vit_small_patch8_224.dino", weights, out_indices, image_size)


@register_model(
    "pathology/lunit_resnet50_bt",
    aliases=("lunit_resnet50_bt",),
    preprocessing=PREPROCESSING,
    source=Url(f"{RELEASE}/bt_rn50_ep200.torch"),
    licence=LICENCE,
    depth=5,
)
def lunit_resnet50_bt(weights: Any, out_indices: Any = None) -> Any:
    """Barlow Twins ResNet-50: [B, 2048]; maps of the stem and four stages."""
    return resnet50(weights, out_indices)


@register_model(
    "pathology/lunit_resnet50_mocov2",
    aliases=("lunit_resnet50_mocov2",),
    preprocessing=PREPROCESSING,
    source=Url(f"{RELEASE}/mocov2_rn50_ep200.torch"),
    licence=LICENCE,
    depth=5,
)
def lunit_resnet50_mocov2(weights: Any, out_indices: Any = None) -> Any:
    """MoCo v2 ResNet-50: [B, 2048]; maps of the stem and four stages."""
    return resnet50(weights, out_indices)


@register_model(
    "pathology/lunit_resnet50_swav",
    aliases=("lunit_resnet50_swav",),
    preprocessing=PREPROCESSING,
    source=Url(f"{RELEASE}/swav_rn50_ep200.torch"),
    licence=LICENCE,
    depth=5,
)
def lunit_resnet50_swav(weights: Any, out_indices: Any = None) -> Any:
    """SwAV ResNet-50: [B, 2048]; maps of the stem and four stages."""
    return resnet50(weights, out_indices)
