"""SuPreM, "How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?" (Li et al. 2024), MrGiovanni/SuPreM.

See `monai_encoders` for the preprocessing.
"""

from typing import Any

from runtime.backbones.monai_encoders import SEGRESNET_DEPTH, SWIN_DEPTH, VOLUME, segresnet, swin_unetr
from runtime.facts import Url
from runtime.registry import register_model

FILES = "https://huggingface.co/MrGiovanni/SuPreM/resolve/main"
LICENCE = "CC-BY-NC-ND-4.0"


@register_model(
    "radiology/suprem_swin_unetr",
    preprocessing=VOLUME,
    source=Url(f"{FILES}/supervised_suprem_swinunetr_2100.pth", md5="72688b8e5766e87f7c3712fa7555d1fd"),
    licence=LICENCE,
    depth=SWIN_DEPTH,
    extra="radiology",
)
def suprem_swin_unetr(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """SuPreM's Swin UNETR encoder: [B, 1152]."""
    return swin_unetr(weights, out_indices, image_size, feature_size=48, use_v2=False, adapt=of_swin_unetr)


@register_model(
    "radiology/suprem_segresnet",
    preprocessing=VOLUME,
    source=Url(f"{FILES}/supervised_suprem_segresnet_2100.pth", md5="fa044baf9a49832e7fe6ab55c9227e49"),
    licence=LICENCE,
    depth=SEGRESNET_DEPTH,
    extra="radiology",
)
def suprem_segresnet(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """SuPreM's SegResNet encoder: [B, 240]."""
    return segresnet(weights, out_indices, image_size, adapt=of_segresnet)


def of_swin_unetr(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the encoder's tensors of a training checkpoint: `net`, keys `….backbone.swinViT.…` and the like."""
    return encoder_tensors(checkpoint, ("swinViT", "encoder"), "backbone.")


def of_segresnet(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the encoder's tensors of a training checkpoint: `net`, keys `module.convInit.…` and the like."""
    return encoder_tensors(checkpoint, ("convInit", "down_layers"), "module.")


def encoder_tensors(checkpoint: dict[str, Any], parts: tuple[str, ...], prefix: str) -> dict[str, Any]:
    """Return the tensors of `net` whose key names one of `parts`, without what precedes and is `prefix`."""
    net = checkpoint.get("net", checkpoint)
    return {key.rpartition(prefix)[2]: value for key, value in net.items() if any(part in key for part in parts)}
