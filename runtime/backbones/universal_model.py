"""CLIP-Driven Universal Model (Liu et al. 2023, arXiv:2301.00785), repository ljwztc/CLIP-Driven-Universal-Model.

See `monai_encoders` for the preprocessing.
"""

from typing import Any

from runtime.backbones.monai_encoders import SWIN_DEPTH, VOLUME, swin_unetr
from runtime.backbones.suprem import encoder_tensors
from runtime.facts import Url
from runtime.registry import register_model


@register_model(
    "radiology/universal_swinunetr",
    preprocessing=VOLUME,
    source=Url(
        "https://huggingface.co/ljwztc/CLIP-Driven-Universal-Model/resolve/main/clip_driven_universal_swin_unetr.pth",
        md5="1ad7a68e904cee85141b05c6bf646ace",
    ),
    licence="CC-BY-NC-ND-4.0",
    depth=SWIN_DEPTH,
    extra="radiology",
)
def universal_swinunetr(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """Swin UNETR's encoder of the Universal Model: [B, 1152]."""
    return swin_unetr(weights, out_indices, image_size, feature_size=48, use_v2=False, adapt=of_the_universal_model)


def of_the_universal_model(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the encoder's tensors of the training checkpoint: `net`, keys `module.swinViT.…` and the like."""
    return encoder_tensors(checkpoint, ("swinViT", "encoder"), "module.")
