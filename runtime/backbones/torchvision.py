"""torchvision's ResNet-50 (He et al. 2015, arXiv:1512.03385), cut off as pathology pipelines use it (CLAM, TRIDENT)."""

from typing import Any

from runtime.backbones.timm_resnet import resnet50
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model


@register_model(
    "pathology/resnet50",
    preprocessing=Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("timm/resnet50.tv_in1k"),
    licence="BSD-3-Clause",
    depth=4,
)
def resnet50_truncated(weights: Any, out_indices: Any = None) -> Any:
    """ImageNet's ResNet-50 without its last stage, averaged: [B, 1024]; maps of the stem and three stages."""
    return resnet50(weights, out_indices, stages=4)
