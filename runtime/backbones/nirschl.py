"""Nirschl Lab: the tile encoder of iSight (Huang et al. 2026, arXiv:2602.04063), hub nirschl-lab/iSight.

OpenAI's CLIP ViT-L/14 at 336 pixels, tuned on immunohistochemistry.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.backbones.vinid import clip_to_timm
from runtime.facts import CLIP_MEAN, CLIP_STD, HubFile, Preprocessing
from runtime.registry import register_model


@register_model(
    "pathology/nirschl_isight",
    aliases=("isight",),
    preprocessing=Preprocessing(size=336, mean=CLIP_MEAN, std=CLIP_STD),
    source=HubFile("nirschl-lab/iSight", filenames=("checkpoints/iSight_model_checkpoint.pth",)),
    depth=24,
    patch_size=14,
)
def nirschl_isight(weights: Any, out_indices: Any = None, image_size: Any = 336) -> Any:
    """iSight, ViT-L/14 with quick GELU: the mean of all its projected tokens, CLS too, without a final norm: [B, 1024].

    CLIP's own final norm and projection were not trained and are left out. The publisher states no licence.
    """
    return timm_vit(
        "vit_large_patch14_clip_quickgelu_336",
        weights,
        out_indices,
        image_size,
        global_pool="",
        final_norm=False,
        head=_projection,
        adapt=isight_to_timm,
    )


def _projection(trunk: Any) -> Any:
    from torch import nn

    from runtime.pathology_layers import MeanToken

    return nn.Sequential(nn.Linear(trunk.num_features, trunk.num_features), MeanToken())


def isight_to_timm(checkpoint: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the image tower and the token projection under timm's keys; pooling and task heads are left out."""
    tensors = checkpoint.get("model_state_dict", checkpoint)
    tower = {key.removeprefix("patch_encoder."): value for key, value in tensors.items()}
    unused = ("norm.", "head.")
    adapted = {key: value for key, value in clip_to_timm(tower, model).items() if not key.startswith(unused)}
    return adapted | {f"head.0.{part}": tensors[f"visual_token_projection.{part}"] for part in ("weight", "bias")}
