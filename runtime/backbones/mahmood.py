"""Mahmood Lab: UNI (Chen et al. 2024, Nature Medicine), UNI 2 and CONCH (Lu et al. 2024, Nature Medicine).

Model cards MahmoodLab/uni, MahmoodLab/UNI2-h and MahmoodLab/conch; CONCH's image tower is read off mahmoodlab/CONCH.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.errors import OptionError
from runtime.facts import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model

LICENCE = "CC-BY-NC-ND-4.0"
PREPROCESSING = Preprocessing(interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
CONCH_WIDTH = 512
# Where nn.MultiheadAttention's tensors of CONCH's pooler lie in ours.
_POOLER = {
    "attn.q_proj_weight": "to_query.weight",
    "attn.k_proj_weight": "to_key.weight",
    "attn.v_proj_weight": "to_value.weight",
    "attn.out_proj.weight": "out.weight",
    "attn.out_proj.bias": "out.bias",
    "ln_q.weight": "query_norm.weight",
    "ln_q.bias": "query_norm.bias",
    "ln_k.weight": "token_norm.weight",
    "ln_k.bias": "token_norm.bias",
}


@register_model(
    "pathology/mahmood_uni",
    preprocessing=PREPROCESSING,
    source=HubFile("MahmoodLab/uni"),
    licence=LICENCE,
    gated=True,
    depth=24,
    patch_size=16,
)
def mahmood_uni(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """UNI, ViT-L/16: [B, 1024]."""
    # The hub's config.json keeps init_values out of model_args: without it LayerScale would be missing.
    return timm_vit("vit_large_patch16_224", weights, out_indices, image_size, init_values=1e-5)


@register_model(
    "pathology/mahmood_uni2_h",
    preprocessing=PREPROCESSING,
    source=HubFile("MahmoodLab/UNI2-h"),
    licence=LICENCE,
    gated=True,
    depth=24,
    patch_size=14,
)
def mahmood_uni2_h(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """UNI 2, ViT-H/14 with SwiGLU and 8 registers: [B, 1536]."""
    from timm.layers import SwiGLUPacked
    from torch import nn

    return timm_vit(
        "vit_giant_patch14_224",
        weights,
        out_indices,
        image_size,
        depth=24,
        num_heads=24,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        init_values=1e-5,
        no_embed_class=True,
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        reg_tokens=8,
    )


@register_model(
    "pathology/mahmood_conch_v1",
    aliases=("conch_v1",),
    preprocessing=Preprocessing(size=448, mean=CLIP_MEAN, std=CLIP_STD),
    source=HubFile("MahmoodLab/conch", filenames=("pytorch_model.bin",)),
    licence=LICENCE,
    gated=True,
    depth=12,
    patch_size=16,
)
def mahmood_conch_v1(
    weights: Any, out_indices: Any = None, image_size: Any = 448, contrastive_projection: bool = False
) -> Any:
    """CONCH, ViT-B/16 with attentional pooling: [B, 512].

    With `contrastive_projection` the embedding is projected into the space shared with text, as LazySlide does; TRIDENT
    and slide2vec do not. It is not scaled to unit length.
    """
    if out_indices is not None and contrastive_projection:
        raise OptionError(
            "contrastive_projection=True projects the embedding and means nothing for feature maps: "
            "leave out contrastive_projection or out_indices."
        )
    return timm_vit(
        "vit_base_patch16_224",
        weights,
        out_indices,
        image_size,
        img_size=448,
        global_pool="",
        head=lambda trunk: _conch_head(trunk, contrastive_projection),
        adapt=conch_to_timm,
    )


def _conch_head(trunk: Any, projection: bool) -> Any:
    from torch import nn

    from runtime.pathology_layers import AttentionalPooler

    layers = [AttentionalPooler(trunk.num_features, CONCH_WIDTH, heads=8), nn.LayerNorm(CONCH_WIDTH)]
    return nn.Sequential(*layers, *([nn.Linear(CONCH_WIDTH, CONCH_WIDTH, bias=False)] if projection else []))


def conch_to_timm(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the image tower's trunk under timm's keys and its contrastive pooler under ours.

    The text tower, the decoder and the captioning pooler are left out; so is the projection, unless `model` has one.
    """
    adapted: dict[str, Any] = {}
    for key, value in tensors.items():
        name = key.removeprefix("module.").removeprefix("visual.")
        pooling = name.removeprefix("attn_pool_contrast.")
        if name.startswith("trunk."):
            adapted[name.removeprefix("trunk.")] = value
        elif name.startswith("ln_contrast."):
            adapted[name.replace("ln_contrast.", "head.1.")] = value
        elif name == "proj_contrast" and len(model.head) > 2:
            adapted["head.2.weight"] = value.T  # a matrix that images are multiplied with from the left
        elif pooling == "attn.in_proj_bias":
            biases = zip(("query", "key", "value"), value.chunk(3), strict=True)
            adapted |= {f"head.0.to_{part}.bias": bias for part, bias in biases}
        elif pooling != name:
            adapted[f"head.0.{_POOLER.get(pooling, pooling)}"] = value
    return adapted
