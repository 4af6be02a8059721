"""Bioptimus: H-optimus-0, H-optimus-1, H0-mini (model cards under huggingface.co/bioptimus).

The hub's configuration of H-optimus states no crop: timm's default (resize to 256, crop 224) is declared here, as
timm's own transform would do. H0-mini's architecture is inferred from its card's token shape and parameter count.
"""

from typing import Any

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import HubFile, Preprocessing
from runtime.registry import register_model

MEAN = (0.707223, 0.578729, 0.703617)
STD = (0.211883, 0.230117, 0.177517)


@register_model(
    "pathology/bioptimus_h_optimus_0",
    preprocessing=Preprocessing(resize=256, mean=MEAN, std=STD),
    source=HubFile("bioptimus/H-optimus-0"),
    licence="Apache-2.0",
    gated=True,
    depth=40,
    patch_size=14,
)
def bioptimus_h_optimus_0(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """H-optimus-0, ViT-g/14 with 4 registers: [B, 1536]."""
    return _h_optimus(weights, out_indices, image_size)


@register_model(
    "pathology/bioptimus_h_optimus_1",
    preprocessing=Preprocessing(resize=256, mean=MEAN, std=STD),
    source=HubFile("bioptimus/H-optimus-1"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    depth=40,
    patch_size=14,
)
def bioptimus_h_optimus_1(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """H-optimus-1, ViT-g/14 with 4 registers: [B, 1536]."""
    return _h_optimus(weights, out_indices, image_size)


def _h_optimus(weights: Any, out_indices: Any, image_size: Any) -> Any:
    # Published at 224 pixels; the architecture's own default is 518.
    return timm_vit("vit_giant_patch14_reg4_dinov2", weights, out_indices, image_size, img_size=224, init_values=1e-5)


@register_model(
    "pathology/bioptimus_h0_mini",
    preprocessing=Preprocessing(mean=MEAN, std=STD),
    source=HubFile("bioptimus/H0-mini"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    depth=12,
    patch_size=14,
)
def bioptimus_h0_mini(
    weights: Any, out_indices: Any = None, image_size: Any = 224, include_patch_tokens: bool = False
) -> Any:
    """H0-mini, ViT-B/14 with 4 registers: CLS [B, 768]; with `include_patch_tokens` CLS and mean patch token [B, 1536].

    The registers are left out of that mean, as the authors do; eva 0.4.5 averages them in.
    """
    from timm.layers import SwiGLUPacked
    from torch import nn

    return timm_vit(
        "vit_base_patch14_reg4_dinov2",
        weights,
        out_indices,
        image_size,
        include_patch_tokens=include_patch_tokens,
        img_size=224,
        init_values=1e-5,
        mlp_ratio=5.33334,
        global_pool="",
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
    )
