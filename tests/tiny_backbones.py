"""Small backbones for tests, mostly real timm Vision Transformers. `--import tiny_backbones` registers them."""

from typing import Any

import torch
from torch import nn

from runtime.backbones.timm_vit import timm_vit
from runtime.facts import HALF, LibraryInit, Preprocessing, Url
from runtime.registry import register_model

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "init_values": 1e-5}
FACTS: dict[str, Any] = {
    "preprocessing": Preprocessing(size=32, mean=HALF, std=HALF),
    "source": Url("http://127.0.0.1:9/tiny.pth"),
    "depth": 3,
    "patch_size": 8,
    "licence": "Apache-2.0",
}


@register_model("test/tiny_vit", **FACTS)
def tiny_vit(weights: Any, out_indices: Any = None, image_size: Any = 32) -> Any:
    """A ViT of 3 blocks with LayerScale and a register token."""
    return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size, reg_tokens=1, **TINY)


@register_model("test/tiny_tokens", **FACTS)
def tiny_tokens(weights: Any, out_indices: Any = None, image_size: Any = 32, include_patch_tokens: bool = False) -> Any:
    """The same without pooling: its CLS token, with the mean patch token on request."""
    return timm_vit(
        "vit_tiny_patch16_224",
        weights,
        out_indices,
        image_size,
        include_patch_tokens=include_patch_tokens,
        reg_tokens=1,
        global_pool="",
        **TINY,
    )


@register_model("test/tiny_initial", **(FACTS | {"source": LibraryInit(seed=3)}))
def tiny_initial(weights: Any, out_indices: Any = None, image_size: Any = 32) -> Any:
    """Random by nature."""
    return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size, **TINY)


class Own(nn.Module):
    """A user's own module: no facts, no weights parameter, embedding only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images).mean((2, 3)))


@register_model("test/own", preprocessing=Preprocessing(size=32))
def own() -> nn.Module:
    """What a user would register."""
    torch.manual_seed(0)
    return Own()


@register_model("test/unseeded", preprocessing=Preprocessing(size=32))
def unseeded() -> nn.Module:
    """What a user would register who forgot the seed."""
    return Own()


@register_model("test/nan", preprocessing=Preprocessing(size=32))
def with_nan() -> nn.Module:
    """Weights with a NaN in them."""
    module = Own()
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    return module


@register_model("test/not_a_module")
def not_a_module() -> Any:
    """A builder that returns something else."""
    return [1, 2, 3]


@register_model("test/crash", preprocessing=Preprocessing(size=32))
def crash() -> nn.Module:
    """A builder that takes its process down, as the kernel does when memory runs out."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@register_model("test/slow", preprocessing=Preprocessing(size=32))
def slow() -> nn.Module:
    """A builder that does not come to an end."""
    import time

    time.sleep(600)
    raise AssertionError("unreachable")


class TwoStages(nn.Module):
    """Two convolutions: the mean of the last map, or chosen maps."""

    def __init__(self, out_indices: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.out_indices = out_indices

    def forward(self, images: torch.Tensor) -> Any:
        maps = [self.stem(images)]
        maps.append(self.body(maps[0]).tanh())
        return maps[1].mean((2, 3)) if self.out_indices is None else [maps[i] for i in self.out_indices]


@register_model("test/two_stages", preprocessing=Preprocessing(size=32), depth=2)
def two_stages(out_indices: Any = None) -> nn.Module:
    """The smallest backbone with feature maps: a second to build."""
    torch.manual_seed(1)
    return TwoStages(out_indices)


@register_model("test/wide_vit", **FACTS)
def wide_vit(weights: Any, out_indices: Any = None, image_size: Any = 32) -> Any:
    """A ViT whose weights outweigh its graphs as a real one's do: 21 MB."""
    wide = TINY | {"embed_dim": 384, "num_heads": 6}
    return timm_vit("vit_tiny_patch16_224", weights, out_indices, image_size, **wide)


register_model("test/slow_too", preprocessing=Preprocessing(size=32))(slow)


class TwoVolumeStages(nn.Module):
    """Two 3-D convolutions: pooled, or chosen maps; the last is said to be normed."""

    def __init__(self, out_indices: Any) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 4, stride=4)
        self.body = nn.Conv3d(8, 8, 3, padding=1)
        self.norm = nn.InstanceNorm3d(8)
        self.indices = [] if out_indices is None else [i % 2 for i in out_indices]
        self.normed = [i == 1 for i in self.indices]

    def forward(self, volumes: torch.Tensor) -> Any:
        maps = [self.stem(volumes)]
        maps.append(self.norm(self.body(maps[0]).relu()) + maps[0])
        return [maps[i] for i in self.indices] if self.indices else maps[1].mean((2, 3, 4))


@register_model("test/volumes", preprocessing=Preprocessing(size=16, channels=1, spatial_dims=3), depth=2, patch_size=4)
def volumes(out_indices: Any = None, image_size: Any = 16) -> nn.Module:
    """The smallest backbone of volumes."""
    torch.manual_seed(1)  # an embedding of eight numbers: of other seeds either side's error can be luck
    return TwoVolumeStages(out_indices)
