"""Architectures that differ in what exporters and compilers have to get right, at a small size, with loud weights."""

from collections.abc import Callable

import timm
import torch
from torch import nn

from runtime.loud import draw_loud

SIDE = 64
_VIT = {"img_size": SIDE, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
_SWIN = {"img_size": SIDE, "window_size": 4, "patch_size": 2, "embed_dim": 48, "depths": (2, 2), "num_heads": (2, 4)}
_SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "mlp_ratio": 4.0, "init_values": 1e-5, "reg_tokens": 4}

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "plain ViT": lambda: timm.create_model("vit_tiny_patch16_224", **_VIT),
    "LayerScale, registers and SwiGLU": lambda: timm.create_model(
        "vit_tiny_patch16_224", **(_VIT | _SWIGLU), act_layer=nn.SiLU
    ),
    "Swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", **_SWIN, num_classes=0),
    "ConvNet": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 24, 32, 40), num_classes=0),
    "ConvNet with batch norms": lambda: timm.create_model(
        "resnet18", layers=(1, 1, 1, 1), channels=(16, 24, 32, 40), num_classes=0
    ),
}


def make(name: str) -> nn.Module:
    """Return the architecture with weights that matter, each of them."""
    module = ARCHITECTURES[name]()
    draw_loud(module, 0)
    return module.eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
