"""Harvard Medical School: the tile encoder of CHIEF (Wang et al. 2024, Nature), repository hms-dbmi/CHIEF."""

from typing import Any

from runtime.backbones.sichuan import PREPROCESSING, STAGES, conv_stem_swin
from runtime.facts import Manual
from runtime.registry import register_model


@register_model(
    "pathology/hms_chief",
    aliases=("chief",),
    preprocessing=PREPROCESSING,
    source=Manual("the Google Drive link of https://github.com/hms-dbmi/CHIEF (CHIEF_CTransPath.pth)"),
    licence="AGPL-3.0",
    depth=STAGES,
)
def hms_chief(weights: Any, out_indices: Any = None) -> Any:
    """CHIEF's CTransPath, which TRIDENT serves as `ctranspath`: [B, 768]; maps of the four stages."""
    return conv_stem_swin(weights, out_indices)
