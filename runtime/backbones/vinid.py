"""PLIP (Huang et al. 2023, Nature Medicine), hub vinid/plip: OpenAI's CLIP ViT-B/32 tuned on pathology; image tower."""

from typing import Any

from runtime.backbones.timm_vit import fuse_qkv, timm_vit
from runtime.facts import CLIP_MEAN, CLIP_STD, HubFile, Preprocessing
from runtime.registry import register_model

WIDTH = 512
# From transformers' names of a CLIP image tower to timm's, in this order.
_RENAMES = (
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("pre_layrnorm.", "norm_pre."),
    ("post_layernorm.", "norm."),
    ("encoder.layers.", "blocks."),
    (".layer_norm", ".norm"),
    (".self_attn.out_proj.", ".attn.proj."),
    (".self_attn.", ".attn."),
)


@register_model(
    "pathology/vinid_plip",
    aliases=("plip",),
    preprocessing=Preprocessing(mean=CLIP_MEAN, std=CLIP_STD),
    source=HubFile("vinid/plip"),
    licence="Non-commercial",
    depth=12,
    patch_size=32,
)
def vinid_plip(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """PLIP, ViT-B/32 with quick GELU, its CLS token projected into the space shared with text: [B, 512]."""
    return timm_vit(
        "vit_base_patch32_clip_quickgelu_224", weights, out_indices, image_size, head=_projection, adapt=clip_to_timm
    )


def _projection(trunk: Any) -> Any:
    from torch import nn

    return nn.Linear(trunk.num_features, WIDTH, bias=False)


def clip_to_timm(tensors: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the image tower and its projection under timm's keys; the text tower is left out."""
    adapted: dict[str, Any] = {}
    for key, value in tensors.items():
        tower, _, name = key.partition(".")
        if key == "visual_projection.weight":
            adapted["head.weight"] = value
        elif name == "embeddings.class_embedding":
            adapted["cls_token"] = value.reshape(1, 1, -1)
        elif tower == "vision_model" and name == "embeddings.position_embedding.weight":
            adapted["pos_embed"] = value.unsqueeze(0)
        elif tower == "vision_model" and name != "embeddings.position_ids":
            for old, new in _RENAMES:
                name = name.replace(old, new)
            adapted[name] = value
    return fuse_qkv(adapted)
