"""What publishers put on the net, at full and at reduced size, and a Vision Transformer that reads it as it is.

Names and shapes are written down here from the publishers' files, not taken from the code under test.
"""

import io
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """One published checkpoint.

    Attributes:
        name: Registry name.
        filename: Of the published file.
        count: Tensors of the backbone in it, without mask token and head.
        positions: Entries of the position embedding.
        hidden: Width between the two layers of the perceptron; the first of two gated halves is activated.
    """

    name: str
    filename: str
    count: int
    width: int
    depth: int
    heads: int
    patch: int
    positions: int
    hidden: int
    registers: int = 0
    gated: bool = False
    layer_scale: bool = True
    teacher: bool = False

    def reduced(self) -> "Layout":
        """Return the same layout with four narrow blocks."""
        return replace(self, width=48, depth=4, heads=3, hidden=256 if self.gated else 192)


SMALL = {"count": 150, "width": 384, "depth": 12, "heads": 6, "hidden": 1536, "layer_scale": False}
BASE = SMALL | {"width": 768, "heads": 12, "hidden": 3072}
LARGE = {"count": 342, "width": 1024, "depth": 24, "heads": 16, "hidden": 4096}
HUGE = {"width": 1280, "depth": 32, "heads": 16, "hidden": 6832, "gated": True, "patch": 14}
GIANT = {"width": 1536, "depth": 40, "heads": 24, "hidden": 8192, "gated": True}
OPTIMUS = GIANT | {"count": 567, "patch": 14, "positions": 256, "registers": 4}
MINI = {"count": 175, "width": 768, "depth": 12, "heads": 12, "hidden": 4096}
P16: dict[str, Any] = {"patch": 16, "positions": 197}
P8: dict[str, Any] = {"patch": 8, "positions": 785}
BIN, SAFE = "pytorch_model.bin", "model.safetensors"

LAYOUTS = [
    Layout("pathology/kaiko_vits16", "vits16.pth", **SMALL, **P16),
    Layout("pathology/kaiko_vits8", "vits8.pth", **SMALL, **P8),
    Layout("pathology/kaiko_vitb16", "vitb16.pth", **BASE, **P16),
    Layout("pathology/kaiko_vitb8", "vitb8.pth", **BASE, **P8),
    Layout("pathology/kaiko_vitl14", "vitl14.pth", **(LARGE | {"count": 343}), patch=14, positions=1369, registers=4),
    Layout("pathology/lunit_vits16", "dino_vit_small_patch16_ep200.torch", **SMALL, **P16),
    Layout("pathology/lunit_vits8", "dino_vit_small_patch8_ep200.torch", **SMALL, **P8),
    Layout("pathology/hkust_gpfm", "GPFM.pth", **LARGE, patch=14, positions=257, teacher=True),
    Layout("pathology/mahmood_uni", BIN, **LARGE, **P16),
    Layout(
        "pathology/mahmood_uni2_h", BIN, **(GIANT | {"count": 343, "depth": 24}), patch=14, positions=256, registers=8
    ),
    Layout("pathology/paige_virchow", SAFE, count=454, positions=257, **HUGE),
    Layout("pathology/paige_virchow2", SAFE, count=455, positions=261, registers=4, **HUGE),
    Layout("pathology/bioptimus_h_optimus_0", BIN, **OPTIMUS),
    Layout("pathology/bioptimus_h_optimus_1", SAFE, **OPTIMUS),
    Layout("pathology/bioptimus_h0_mini", SAFE, **(OPTIMUS | MINI)),
    Layout("pathology/prov_gigapath", BIN, count=566, **GIANT, **P16),
    Layout("universal/vit_small_patch16_224_dino", SAFE, **SMALL, **P16),
    Layout("universal/vit_small_patch16_224_dino_1chan", SAFE, **SMALL, **P16),
    Layout("universal/vit_base_patch16_224_dino_1chan", SAFE, **BASE, **P16),
]


def shapes(layout: Layout) -> Shapes:
    """Return name and shape of every tensor of the backbone, under timm's names."""
    width = layout.width
    found: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, layout.positions, width),
        "patch_embed.proj.weight": (width, 3, layout.patch, layout.patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if layout.registers:
        found["reg_token"] = (1, layout.registers, width)
    for i in range(layout.depth):
        found |= {f"blocks.{i}.{name}": shape for name, shape in _block(layout).items()}
    return found


def _block(layout: Layout) -> Shapes:
    width, hidden = layout.width, layout.hidden
    linear = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden // 2 if layout.gated else hidden),
    }
    found: Shapes = {f"norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    for name, shape in linear.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if layout.layer_scale:
        found |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
    return found


def draw(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors, each of which moves the output."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(layout).items():
        scale = (
            (3 / (torch.Size(shape).numel() / shape[0])) ** 0.5 if name.endswith("weight") and len(shape) > 1 else 0.5
        )
        tensor = torch.empty(shape).uniform_(-scale, scale, generator=generator)
        tensors[name] = tensor + 1 if "norm" in name and name.endswith("weight") else tensor
    return tensors


def file_of(layout: Layout, tensors: dict[str, Tensor]) -> bytes:
    """Return the published file: the tensors, under the publisher's names and with what else lies beside them."""
    if layout.filename.endswith(".safetensors"):
        return save(tensors)
    buffer = io.BytesIO()
    torch.save(_as_teacher(layout, tensors) if layout.teacher else tensors, buffer)
    return buffer.getvalue()


def _as_teacher(layout: Layout, tensors: dict[str, Tensor]) -> dict[str, Any]:
    # DINOv2's training code keeps blocks in chunks; a block keeps its number within the whole.
    per_chunk = layout.depth // 4 if layout.depth >= 4 else 1
    named = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            number = int(rest.partition(".")[0])
            name = f"blocks.{number // per_chunk}.{rest}"
        named[f"backbone.{name}"] = tensor
    beside = {"backbone.mask_token": torch.ones(1, layout.width), "dino_head.mlp.0.weight": torch.ones(7, layout.width)}
    return {"teacher": named | beside}


def embed(layout: Layout, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the CLS token after the final norm, computed from the published tensors as they are: [B, D]."""
    x = _tokens(layout, tensors, images)
    for i in range(layout.depth):
        block = {name: tensors[f"blocks.{i}.{name}"] for name in _block(layout)}
        x = x + block.get("ls1.gamma", 1) * _attention(layout, block, _norm(x, block, "norm1"))
        x = x + block.get("ls2.gamma", 1) * _perceptron(layout, block, _norm(x, block, "norm2"))
    return _norm(x, tensors, "norm")[:, 0]


def _tokens(layout: Layout, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    stem = tensors["patch_embed.proj.weight"]
    if images.shape[1] == 1:
        stem = stem.sum(1, keepdim=True)
    grid = F.conv2d(images, stem, tensors["patch_embed.proj.bias"], stride=layout.patch)
    prefix = [tensors[name] for name in ("cls_token", "reg_token") if name in tensors]
    position = _resampled(tensors["pos_embed"], grid.shape[-1]) if layout.positions == 1369 else tensors["pos_embed"]
    x = grid.flatten(2).transpose(1, 2)
    if position.shape[1] == x.shape[1]:  # prefix tokens have no position
        x = x + position
        return torch.cat([*(p.expand(len(x), -1, -1) for p in prefix), x], 1)
    return torch.cat([*(p.expand(len(x), -1, -1) for p in prefix), x], 1) + position


def _resampled(position: Tensor, side: int) -> Tensor:
    old = int(position.shape[1] ** 0.5)
    square = position.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, (side, side), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


def _attention(layout: Layout, block: dict[str, Tensor], x: Tensor) -> Tensor:
    batch, length, width = x.shape
    qkv = _linear(x, block, "attn.qkv").reshape(batch, length, 3, layout.heads, -1).permute(2, 0, 3, 1, 4)
    scores = (qkv[0] @ qkv[1].transpose(-1, -2)) * (width // layout.heads) ** -0.5
    mixed = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(batch, length, width)
    return _linear(mixed, block, "attn.proj")


def _perceptron(layout: Layout, block: dict[str, Tensor], x: Tensor) -> Tensor:
    x = _linear(x, block, "mlp.fc1")
    if layout.gated:
        gate, value = x.chunk(2, -1)
        return _linear(F.silu(gate) * value, block, "mlp.fc2")
    return _linear(F.gelu(x), block, "mlp.fc2")


def _linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)
