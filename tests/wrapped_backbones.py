"""What a user of the wrappers has on disk: a script, functions, checkpoints, folders of transformers and torch.hub."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_backbones import TINY

from runtime.backbones.timm_vit import timm_vit
from runtime.loud import draw_loud
from runtime.weights import LoudWeights

SCRIPT = """
from pathlib import Path

from runtime import LocalFile, Preprocessing, wrappers

HERE = Path(__file__).parent
SMALL = Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TINY = {tiny}


def renamed(tensors, module):
    return {{key.removeprefix("encoder."): tensor for key, tensor in tensors["student"].items()}}


wrappers.timm(
    "mine/timm", "vit_tiny_patch16_224", source=LocalFile(HERE / "vit.safetensors"), arguments=TINY,
    preprocessing=SMALL, patch_size=8, depth=3,
)
wrappers.timm(
    "mine/renamed", "vit_tiny_patch16_224", source=LocalFile(HERE / "student.pth"), arguments=TINY, adapt=renamed,
    preprocessing=SMALL, patch_size=8, depth=3,
)
wrappers.transformers("mine/transformers", HERE / "dinov2")
wrappers.torch_hub("mine/torch_hub", HERE / "repository", "tiny", arguments={{"width": 6}}, preprocessing=SMALL)
wrappers.torch_hub(
    "mine/torch_hub_own", HERE / "repository", "tiny", source=LocalFile(HERE / "hub.pth"), preprocessing=SMALL
)
wrappers.function("mine/function", "wrapped_models:convolutions", arguments={{"width": 6}}, preprocessing=SMALL)
wrappers.function(
    "mine/function_filled", "wrapped_models.convolutions", source=LocalFile(HERE / "lightning.ckpt"),
    preprocessing=SMALL, depth=2,
)
wrappers.checkpoint("mine/checkpoint", "test/tiny_vit", source=LocalFile(HERE / "finetuned.safetensors"))
wrappers.checkpoint("mine/checkpoint_renamed", "test/tiny_vit", source=LocalFile(HERE / "student.pth"), adapt=renamed)
"""

MODELS = '''
import torch
from torch import nn


class Convolutions(nn.Module):
    """The smallest backbone with maps; `scale` is a plain tensor, which a skeleton without storage would lose."""

    def __init__(self, width, out_indices):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        if out_indices is None or 1 in [i % 2 for i in out_indices]:
            self.body = nn.Conv2d(width, width, 3, padding=1)
        self.scale = torch.linspace(1, 2, width)[:, None, None]
        self.out_indices = out_indices

    def forward(self, images):
        maps = [self.stem(images) * self.scale]
        if hasattr(self, "body"):
            maps.append(self.body(maps[0]).tanh())
        return maps[-1].mean((2, 3)) if self.out_indices is None else [maps[i % 2] for i in self.out_indices]


def convolutions(width=4, out_indices=None, gain=1.0, dtype=torch.float32):
    torch.manual_seed(2)
    if isinstance(out_indices, int):
        out_indices = range(2 - out_indices, 2)
    made = Convolutions(width, out_indices)
    made.scale = made.scale * gain
    return made.to(dtype)


class Volumes(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv3d(1, width, 4, stride=4)

    def forward(self, volumes):
        return self.stem(volumes).tanh().mean((2, 3, 4))


def no_module():
    return {"a": 1}


def features(backbone="x", features_only=False, out_indices=None):
    return Convolutions(4, out_indices if features_only else None)


NUMBER = 3
'''

HUBCONF = """
dependencies = ["torch"]
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


def tiny(pretrained=True, width=4):
    (HERE / f"called_pretrained_{pretrained}").touch()
    module = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))
    if pretrained:
        with torch.no_grad():
            module[0].weight.copy_(torch.linspace(-1, 1, module[0].weight.numel()).reshape_as(module[0].weight))
            module[0].bias.zero_()
    return module


def without_flag(width=4):
    return tiny(False, width)


def broken():
    raise RuntimeError("no such release")


def no_module(pretrained=True):
    return "a string"
"""


def write(folder: Path) -> None:
    """Write all of it into `folder`."""
    (folder / "wrapped_script.py").write_text(SCRIPT.format(tiny={**TINY, "reg_tokens": 1}))
    (folder / "wrapped_models.py").write_text(MODELS)
    (folder / "repository").mkdir()
    (folder / "repository" / "hubconf.py").write_text(HUBCONF)
    save_file(vit(1), folder / "vit.safetensors")
    save_file(vit(2), folder / "finetuned.safetensors")
    torch.save({"student": {f"encoder.{key}": value for key, value in vit(3).items()}}, folder / "student.pth")
    torch.save({"0.weight": torch.full((4, 3, 8, 8), 0.01), "0.bias": torch.ones(4)}, folder / "hub.pth")
    filled = {"stem.weight": torch.full((4, 3, 8, 8), 0.01), "stem.bias": torch.ones(4)}
    filled |= {"body.weight": torch.full((4, 4, 3, 3), 0.02), "body.bias": torch.zeros(4)}
    torch.save({"epoch": 3, "state_dict": filled}, folder / "lightning.ckpt")
    dinov2(folder / "dinov2")


def vit(seed: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a tiny ViT of timm."""
    module = timm_vit("vit_tiny_patch16_224", LoudWeights(seed), None, 32, reg_tokens=1, **TINY)
    return {key.removeprefix("model."): tensor for key, tensor in module.state_dict().items()}


def dinov2(folder: Path) -> None:
    """Save a tiny DINOv2 with a classifier, and how its images are prepared."""
    from transformers import Dinov2Config, Dinov2ForImageClassification
    from transformers.utils import logging

    small = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28, "patch_size": 14}
    module = Dinov2ForImageClassification(Dinov2Config(**small, use_swiglu_ffn=True, num_labels=4))
    draw_loud(module, 4)
    logging.disable_progress_bar()
    module.save_pretrained(folder)
    logging.enable_progress_bar()
    declared = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
    declared |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(declared))
