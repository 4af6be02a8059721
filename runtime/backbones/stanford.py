"""Stanford: MUSK (Xiang et al. 2025, Nature), repository lilab-stanford/MUSK; the vision branch of its BEiT-3."""

from typing import Any

from runtime.backbones.timm_vit import fuse_qkv, timm_vit
from runtime.facts import HALF, HubFile, Preprocessing
from runtime.registry import register_model

# From torchscale's names to timm's, in this order. A is the vision branch of each multiway layer.
_RENAMES = (
    ("vision_embed.cls_token", "cls_token"),
    ("vision_embed.", "patch_embed."),
    ("encoder.layer_norm.", "norm."),
    ("encoder.layers.", "blocks."),
    (".self_attn_layer_norm.", ".norm1."),
    (".final_layer_norm.", ".norm2."),
    (".self_attn.inner_attn_ln.", ".attn.norm."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".self_attn.", ".attn."),
    (".ffn.A.ffn_layernorm.", ".mlp.norm."),
    (".ffn.", ".mlp."),
    (".A.", "."),
)
# torchscale counts positions from 2, as fairseq does.
_FIRST_POSITION = 2


@register_model(
    "pathology/stanford_musk",
    aliases=("musk",),
    preprocessing=Preprocessing(size=384, mean=HALF, std=HALF),
    source=HubFile("xiangjx/musk"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    depth=24,
    patch_size=16,
)
def stanford_musk(weights: Any, out_indices: Any = None, image_size: Any = 384) -> Any:
    """MUSK, BEiT-3 large with patches of 16: CLS [B, 1024], without the authors' head and multi-scale augmentation."""
    return timm_vit(
        "beit3_large_patch16_224",
        weights,
        out_indices,
        image_size,
        img_size=384,
        global_pool="token",
        adapt=musk_to_timm,
    )


def musk_to_timm(tensors: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ARG001
    """Return the vision branch under timm's keys; the text branch, the mask token and the heads are left out."""
    adapted = {}
    for key, value in tensors.items():
        name = key.removeprefix("beit3.")
        if not name.startswith(("vision_embed.", "encoder.")) or ".B." in name or name.endswith("mask_token"):
            continue
        if name == "encoder.embed_positions.A.weight":
            adapted["pos_embed"] = value[_FIRST_POSITION:].unsqueeze(0)
            continue
        for old, new in _RENAMES:
            name = name.replace(old, new)
        adapted[name] = value
    return fuse_qkv(adapted)
