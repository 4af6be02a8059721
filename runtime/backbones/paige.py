"""Paige: Virchow (Vorontsov et al. 2024, Nature Medicine) and Virchow2 (arXiv:2408.00738).

By default the CLS token is the embedding, as in eva; `include_patch_tokens=True` gives the publisher's 2560 dimensions.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, HubFile, Preprocessing
from runtime.registry import register_model

PREPROCESSING = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)


@register_model(
    "pathology/paige_virchow",
    preprocessing=PREPROCESSING,
    source=HubFile("paige-ai/Virchow"),
    licence="Apache-2.0",
    gated=True,
    depth=32,
    patch_size=14,
)
def paige_virchow(
    weights: Any, out_indices: Any = None, image_size: Any = 224, include_patch_tokens: bool = False
) -> Any:
    """Virchow, ViT-H/14: CLS [B, 1280]; with `include_patch_tokens` CLS and mean patch token [B, 2560]."""
    return _virchow(weights, out_indices, image_size, include_patch_tokens)


@register_model(
    "pathology/paige_virchow2",
    aliases=("paige/virchow2",),
    preprocessing=PREPROCESSING,
    source=HubFile("paige-ai/Virchow2"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    depth=32,
    patch_size=14,
)
def paige_virchow2(
    weights: Any, out_indices: Any = None, image_size: Any = 224, include_patch_tokens: bool = False
) -> Any:
    """Virchow2, ViT-H/14 with 4 registers: CLS [B, 1280]; with `include_patch_tokens` CLS and mean token [B, 2560].

    The registers are left out of that mean, as the authors do; eva 0.4.5 averages them in.
    """
    return _virchow(weights, out_indices, image_size, include_patch_tokens, reg_tokens=4)


def _virchow(weights: Any, out_indices: Any, image_size: Any, include_patch_tokens: bool, **kwargs: Any) -> Any:
    from timm.layers import SwiGLUPacked
    from torch import nn

    return timm_vit(
        "vit_huge_patch14_224",
        weights,
        out_indices,
        image_size,
        include_patch_tokens=include_patch_tokens,
        init_values=1e-5,
        mlp_ratio=5.3375,
        global_pool="",
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        **kwargs,
    )
