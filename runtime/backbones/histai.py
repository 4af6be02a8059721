"""HistAI: Hibou-B and Hibou-L (Nechaev et al. 2024, arXiv:2406.05074).

The hub repositories carry code of their own, written for transformers 4.35 and broken by transformers 5. It is not run:
the stock class with registers is the same architecture. The layout of HistAI's own `.pth` files is understood, too.
"""

from typing import Any

from runtime.backbones.transformers_vit import transformers_vit
from runtime.facts import HubFile, Preprocessing
from runtime.registry import register_model

PREPROCESSING = Preprocessing(mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816))


@register_model(
    "pathology/histai_hibou_b",
    preprocessing=PREPROCESSING,
    source=HubFile("histai/hibou-B"),
    licence="Apache-2.0",
    gated=True,
    depth=12,
    patch_size=14,
    extra="transformers",
)
def histai_hibou_b(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """Hibou-B, ViT-B/14 with SwiGLU and 4 registers: [B, 768]."""
    return _hibou(weights, out_indices, image_size, width=768, depth=12, heads=12)


@register_model(
    "pathology/histai_hibou_l",
    preprocessing=PREPROCESSING,
    source=HubFile("histai/hibou-L"),
    licence="Apache-2.0",
    gated=True,
    depth=24,
    patch_size=14,
    extra="transformers",
)
def histai_hibou_l(weights: Any, out_indices: Any = None, image_size: Any = 224) -> Any:
    """Hibou-L, ViT-L/14 with SwiGLU and 4 registers: [B, 1024]."""
    return _hibou(weights, out_indices, image_size, width=1024, depth=24, heads=16)


def _hibou(weights: Any, out_indices: Any, image_size: Any, *, width: int, depth: int, heads: int) -> Any:
    return transformers_vit(
        "Dinov2WithRegisters",
        weights,
        out_indices,
        image_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=14,
        use_swiglu_ffn=True,
        num_register_tokens=4,
    )
