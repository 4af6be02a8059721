"""DINOv2: the published facts and files, and its own rule for the position embedding away from 518 pixels."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import FORMS, request_for
from torch import nn

from exporters import pipeline
from exporters.plan import Job
from runtime import registry
from runtime.backbones import meta
from runtime.backbones.timm_vit import timm_vit
from runtime.errors import WeightsError
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Url
from runtime.registry import register_model
from runtime.weights import Adapt, LoudWeights, PublishedWeights, check_fit

# As published: parameters under timm's names (no mask token; with registers the CLS token's position is in the token);
# embedding; blocks.
FACTS = {
    "dinov2_vits14": (22056192, 384, 12),
    "dinov2_vitb14": (86579712, 768, 12),
    "dinov2_vitl14": (304367616, 1024, 24),
    "dinov2_vitg14": (1136479232, 1536, 40),
    "dinov2_vits14_reg": (22057344, 384, 12),
    "dinov2_vitb14_reg": (86582016, 768, 12),
    "dinov2_vitl14_reg": (304370688, 1024, 24),
    "dinov2_vitg14_reg": (1136483840, 1536, 40),
}
# Two small models with the 37 x 37 table of the published ones; the second like ViT-g.
SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PLAIN, REGISTERS = "vit_small_patch14_dinov2", "vit_giant_patch14_reg4_dinov2"


class OnMeta:
    """Constructs without storage, and keeps what a state dict must fit and how it is adapted."""

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:
        with torch.device("meta"):
            self.model = create()
        self.fits = dict(self.model.state_dict())
        self.adapt = adapt
        return self.model


@pytest.mark.parametrize("name", FACTS)
def test_a_backbone_is_what_its_publisher_says(name: str) -> None:
    parameters, dim, depth = FACTS[name]
    spec, weights = registry.find(f"universal/{name}"), OnMeta()
    images = torch.empty(2, 3, 224, 224, device="meta")

    assert spec.build(weights=weights)(images).shape == (2, dim)
    maps = spec.build(weights=OnMeta(), out_indices=(0, 1), image_size=(140, 210))
    assert [tuple(m.shape) for m in maps(images[..., :140, :210])] == [(2, dim, 10, 15)] * 2

    assert sum(tensor.numel() for tensor in weights.fits.values()) == parameters
    assert registry.find(f"torchhub/facebookresearch/dinov2:main:{name}") is spec
    assert spec.preprocessing == Preprocessing(size=224, resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert (spec.depth, spec.patch_size, spec.licence, spec.gated) == (depth, 14, "Apache-2.0", False)


def test_the_files_are_the_original_ones() -> None:
    urls = [str(registry.find(f"universal/{name}").source) for name in ("dinov2_vits14", "dinov2_vitg14_reg")]
    base = "https://dl.fbaipublicfiles.com/dinov2"
    assert urls == [
        f"{base}/dinov2_vits14/dinov2_vits14_pretrain.pth",
        f"{base}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth",
    ]


def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under timm's names as the original files hold them; the CLS token's position is made up."""
    own = {re.sub(r"\.mlp\.fc([12])\.", _swiglu(tensors), name): tensor for name, tensor in tensors.items()}
    own["mask_token"] = torch.zeros_like(own["norm.bias"])[None]
    if "reg_token" in own:
        own["register_tokens"] = own.pop("reg_token")
        position = torch.full_like(own["cls_token"], 0.25)
        own["pos_embed"] = torch.cat([position, own["pos_embed"]], dim=1)
        own["cls_token"] = own["cls_token"] - position
    return own


def _swiglu(tensors: dict[str, torch.Tensor]) -> Callable[[re.Match[str]], str]:
    packed = tensors["blocks.0.mlp.fc1.bias"].numel() != 4 * tensors["norm.bias"].numel()
    return lambda found: (".mlp.w12." if found[1] == "1" else ".mlp.w3.") if packed else found[0]


@pytest.mark.parametrize("name", FACTS)
def test_the_original_files_fit(name: str) -> None:
    weights = OnMeta()
    registry.find(f"universal/{name}").build(weights=weights, image_size=518)
    tensors = published(weights.fits)
    assert ("register_tokens" in tensors, "blocks.0.mlp.w12.weight" in tensors) == ("_reg" in name, "vitg" in name)
    assert tensors["pos_embed"].shape[1] == 1 + 37 * 37

    check_fit(weights.model, weights.adapt(dict(tensors), weights.model), name)

    with pytest.raises(WeightsError, match=r"1 unexpected \(blocks\.0\.more\)"):
        check_fit(weights.model, weights.adapt(tensors | {"blocks.0.more": tensors["norm.bias"]}, weights.model), name)


def small(architecture: str, weights: Any, image_size: Any, out_indices: Any = None) -> nn.Module:
    build = meta._with_offset if architecture == PLAIN else timm_vit
    return build(architecture, weights, out_indices, image_size, **SMALL).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def cubic(distance: float) -> float:
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def read_off(native: int, wanted: int) -> np.ndarray:
    """Return the weights [wanted, native] of DINOv2's interpolate_pos_encoding along one side, in float64."""
    weights = np.zeros((wanted, native))
    scale = (wanted + 0.1) / native
    for i in range(wanted):
        source = (i + 0.5) / scale - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            weights[i, min(max(tap, 0), native - 1)] += cubic(source - tap)
    return weights


GRIDS = [(16, 16), (10, 15), (37, 16), (40, 40), (5, 52)]


def by_the_rule(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    square = table.double().numpy().reshape(37, 37, -1)
    resampled = np.einsum("hm,wn,mnd->hwd", read_off(37, grid[0]), read_off(37, grid[1]), square)
    return torch.from_numpy(resampled.reshape(1, -1, table.shape[-1])).float()


def native_table() -> torch.Tensor:
    return small(PLAIN, LoudWeights(), 518).model.pos_embed.detach()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_registers_the_table_is_resampled_by_the_rule_of_the_original(grid: tuple[int, int]) -> None:
    native = native_table()
    model = small(PLAIN, LoudWeights(), (14 * grid[0], 14 * grid[1])).model

    assert torch.equal(model.pos_embed[:, :1], native[:, :1])
    torch.testing.assert_close(model.pos_embed[:, 1:], by_the_rule(native[:, 1:], grid), rtol=0, atol=2e-5)
    timms = timm_vit(PLAIN, LoudWeights(), None, (14 * grid[0], 14 * grid[1]), **SMALL).model
    assert (model.pos_embed - timms.pos_embed).abs().max() > 1e-2  # the offset is there


@pytest.mark.parametrize("architecture", [PLAIN, REGISTERS])
def test_a_dynamic_size_gives_the_numbers_of_a_fixed_one(architecture: str) -> None:
    dynamic = small(architecture, LoudWeights(), "dynamic")
    maps = small(architecture, LoudWeights(), "dynamic", 2)
    for grid in [*GRIDS, (37, 37)]:
        size = (14 * grid[0], 14 * grid[1])
        images = noise(1, 3, *size)
        with torch.no_grad():
            expected = small(architecture, LoudWeights(), size)(images)
            torch.testing.assert_close(dynamic(images), expected, rtol=0, atol=2e-5)
            expected = small(architecture, LoudWeights(), size, 2)(images)
            torch.testing.assert_close(maps(images), expected, rtol=0, atol=5e-5)


def test_at_its_native_size_the_table_is_used_as_it_is() -> None:
    fixed, dynamic = small(PLAIN, LoudWeights(), 518), small(PLAIN, LoudWeights(), "dynamic")
    images = noise(1, 3, 518, 518)
    with torch.no_grad():
        assert torch.equal(fixed(images), dynamic(images))


def first_tokens(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return what enters the first block, as DINOv2's own code puts it together from its own state dict."""
    patches = nn.functional.conv2d(images, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], 14)
    grid = (patches.shape[2], patches.shape[3])
    tokens = torch.cat([tensors["cls_token"], patches.flatten(2).transpose(1, 2)], dim=1)
    position, table = tensors["pos_embed"][:, :1], tensors["pos_embed"][:, 1:]
    if "register_tokens" not in tensors:
        return tokens + torch.cat([position, by_the_rule(table, grid)], dim=1)
    square = table.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    resampled = nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=True)
    tokens = tokens + torch.cat([position, resampled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return torch.cat([tokens[:, :1], tensors["register_tokens"], tokens[:, 1:]], dim=1)


def original_block(tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Return the tokens after block 0 of DINOv2's own code, SwiGLU (ViT-g) or MLP."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, tensors[f"blocks.0.{name}.weight"], tensors[f"blocks.0.{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = tensors[f"blocks.0.{name}.weight"], tensors[f"blocks.0.{name}.bias"]
        return nn.functional.layer_norm(x, weight.shape, weight, bias, 1e-6)

    q, k, v = (t.unflatten(2, (2, 12)).transpose(1, 2) for t in linear("attn.qkv", norm("norm1", tokens)).chunk(3, -1))
    attended = ((q / 12**0.5 @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    tokens = tokens + tensors["blocks.0.ls1.gamma"] * linear("attn.proj", attended)
    x = norm("norm2", tokens)
    if "blocks.0.mlp.w12.bias" in tensors:
        gate, up = linear("mlp.w12", x).chunk(2, dim=-1)
        x = linear("mlp.w3", nn.functional.silu(gate) * up)
    else:
        x = linear("mlp.fc2", nn.functional.gelu(linear("mlp.fc1", x)))
    return tokens + tensors["blocks.0.ls2.gamma"] * x


@pytest.mark.parametrize("architecture", [PLAIN, REGISTERS])
def test_an_original_file_gives_the_numbers_of_the_original_code(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = published(small(architecture, LoudWeights(), 518).model.state_dict())
    path = tmp_path / "original.pth"
    torch.save(tensors, path)
    monkeypatch.setattr("runtime.weights.fetch", lambda *_: (path, "revision"))

    ours = small(architecture, PublishedWeights(Url("http://127.0.0.1:9/x"), "my/model"), (140, 210), (0,))

    images = noise(1, 3, 140, 210)
    with torch.no_grad():
        (got,) = ours(images)
        tokens = original_block(tensors, first_tokens(tensors, images))
    prefix = 5 if "register_tokens" in tensors else 1
    expected = tokens[:, prefix:].transpose(1, 2).unflatten(2, (10, 15))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_a_dynamic_artifact_passes_the_gate_and_holds_no_resize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    facts = Preprocessing(size=56, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @register_model("test/dinov2", preprocessing=facts, source=Url("http://127.0.0.1:9/x"), depth=2, patch_size=14)
    def build(weights: Any, out_indices: Any = None, image_size: Any = 56) -> nn.Module:
        return small(PLAIN, weights, image_size, out_indices)

    request = request_for("test/dinov2", weights="random", artifacts=str(tmp_path), image_size="dynamic")
    outcomes = pipeline.build(Job(request, FORMS))

    assert [o.status for o in outcomes] == ["built", "built"], outcomes
    (graph,) = (onnx.load(path, load_external_data=False).graph for path in tmp_path.rglob("*.onnx"))
    assert "Resize" not in {node.op_type for node in graph.node}
