"""Sichuan University: CTransPath (Wang et al. 2022, Medical Image Analysis), repository Xiyue-Wang/TransPath."""

import re
from typing import TYPE_CHECKING, Any

from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, Manual, Preprocessing
from runtime.out_indices import canonical
from runtime.registry import register_model

if TYPE_CHECKING:
    from torch import nn

    from runtime.out_indices import OutIndices
    from runtime.weights import Weights

PREPROCESSING = Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
STAGES = 4
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")


@register_model(
    "pathology/sichuan_ctranspath",
    aliases=("ctranspath",),
    preprocessing=PREPROCESSING,
    source=Manual("the Google Drive link of https://github.com/Xiyue-Wang/TransPath (ctranspath.pth)"),
    licence="GPL-3.0",
    depth=STAGES,
)
def sichuan_ctranspath(weights: Any, out_indices: Any = None) -> Any:
    """CTransPath, Swin-T with a convolutional stem: [B, 768]; maps of the four stages."""
    return conv_stem_swin(weights, out_indices)


def conv_stem_swin(weights: "Weights", out_indices: "OutIndices") -> "nn.Module":
    """Return CTransPath's architecture: its average over the normed tokens, or the maps of its stages.

    Its windows are laid for 224 pixels. Maps are [B, C, h, w], before the next stage's downsampling, without the final
    norm.
    """
    from runtime.modules import Embedding, FeatureMaps

    indices = canonical(out_indices, STAGES)
    model = weights.construct(_create, ctranspath_to_timm)
    return Embedding(model) if indices is None else FeatureMaps(model, [index + STAGES for index in indices])


def _create() -> "nn.Module":
    import timm

    from runtime.pathology_layers import ConvStem

    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, embed_layer=ConvStem
    )
    return model


def ctranspath_to_timm(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the weights under today's timm keys.

    timm 0.5 downsampled at the end of a stage, today's does at the start of the next; index maps and attention masks
    are computed, not loaded.
    """
    return {
        _DOWNSAMPLE.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", key): value
        for key, value in checkpoint.get("model", checkpoint).items()
        if not key.endswith(("relative_position_index", "attn_mask"))
    }
