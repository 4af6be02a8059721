"""Sophont and MedARC: OpenMidnight (Kaplan et al. 2025), a replication of kaiko's Midnight; hub SophontAI/OpenMidnight.

Mean and std are ImageNet's, not Midnight's 0.5.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model


@register_model(
    "pathology/sophont_openmidnight",
    aliases=("openmidnight",),
    preprocessing=Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    source=HubFile("SophontAI/OpenMidnight", filenames=("teacher_checkpoint_load.pt",)),
    licence="Apache-2.0",
    gated=True,
    depth=40,
    patch_size=14,
)
def sophont_openmidnight(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """OpenMidnight, DINOv2 ViT-g/14 with 4 registers: CLS [B, 1536].

    The checkpoint has the keys of DINOv2's own code, which timm's filter translates; its position embedding is for 224
    pixels. At other sizes timm's resampling is used, not DINOv2's.
    """
    return timm_vit("vit_giant_patch14_reg4_dinov2", weights, out_indices, image_size, img_size=224, init_values=1e-5)
