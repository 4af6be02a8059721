"""VoCo, "Large-Scale 3D Medical Image Pre-training with Geometric Context Priors" (Wu et al. 2024, arXiv:2410.09890).

Weights: Luffy503/VoCo on the Hugging Face hub, encoders of Swin UNETR V2. See `monai_encoders` for the preprocessing.
"""

from typing import Any

from runtime.backbones.monai_encoders import SWIN_DEPTH, VOLUME, swin_unetr
from runtime.facts import Url
from runtime.registry import register_model

FILES = "https://huggingface.co/Luffy503/VoCo/resolve/main"
LICENCE = "Apache-2.0"


@register_model(
    "radiology/voco_b",
    preprocessing=VOLUME,
    source=Url(f"{FILES}/VoCo_B_SSL_head.pt", md5="f80c4da2f81d700bdae3df188f2057eb"),
    licence=LICENCE,
    depth=SWIN_DEPTH,
    extra="radiology",
)
def voco_b(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """VoCo-B: [B, 1152]."""
    return swin_unetr(weights, out_indices, image_size, feature_size=48, use_v2=True)


@register_model(
    "radiology/voco_l",
    preprocessing=VOLUME,
    source=Url(f"{FILES}/VoCo_L_SSL_head.pt", md5="795095d1d43ef3808ec4c41798310136"),
    licence=LICENCE,
    depth=SWIN_DEPTH,
    extra="radiology",
)
def voco_l(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """VoCo-L: [B, 2304]."""
    return swin_unetr(weights, out_indices, image_size, feature_size=96, use_v2=True)


@register_model(
    "radiology/voco_h",
    preprocessing=VOLUME,
    source=Url(f"{FILES}/VoCo_H_SSL_head.pt", md5="76f95a474736b60bf5b8aad94643744d"),
    licence=LICENCE,
    depth=SWIN_DEPTH,
    extra="radiology",
)
def voco_h(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """VoCo-H: [B, 4608]."""
    return swin_unetr(weights, out_indices, image_size, feature_size=192, use_v2=True)
