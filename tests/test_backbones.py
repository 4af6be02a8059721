"""Every built-in backbone against the published facts, on the meta device; and the numbers of their shared parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from tiny_backbones import TINY
from torch import nn

from runtime import eager, registry
from runtime.backbones.timm_vit import timm_vit
from runtime.errors import OptionError, OutIndicesError
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD
from runtime.request import make_request
from runtime.weights import Adapt, LoudWeights, check_fit

LUNIT = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
OPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
IMAGENET, HALVES, NONE = (IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF), (None, None)
# As published: parameters and tensors of the checkpoint; embedding; blocks; patch; mean and std; gated; channels;
# resize before the crop to 224, and its filter.
FACTS = {
    "pathology/bioptimus_h0_mini": (85739520, 175, 768, 12, 14, OPTIMUS, True, 3, None, "bicubic"),
    "pathology/bioptimus_h_optimus_0": (1134774272, 567, 1536, 40, 14, OPTIMUS, True, 3, 256, "bicubic"),
    "pathology/bioptimus_h_optimus_1": (1134774272, 567, 1536, 40, 14, OPTIMUS, True, 3, 256, "bicubic"),
    "pathology/hkust_gpfm": (303227904, 342, 1024, 24, 14, IMAGENET, False, 3, None, "bicubic"),
    "pathology/kaiko_vitb16": (85798656, 150, 768, 12, 16, HALVES, False, 3, None, "bilinear"),
    "pathology/kaiko_vitb8": (85807872, 150, 768, 12, 8, HALVES, False, 3, None, "bilinear"),
    "pathology/kaiko_vitl14": (304370688, 343, 1024, 24, 14, HALVES, False, 3, None, "bilinear"),
    "pathology/kaiko_vits16": (21665664, 150, 384, 12, 16, HALVES, False, 3, None, "bilinear"),
    "pathology/kaiko_vits8": (21670272, 150, 384, 12, 8, HALVES, False, 3, None, "bilinear"),
    "pathology/lunit_vits16": (21665664, 150, 384, 12, 16, LUNIT, False, 3, None, "bicubic"),
    "pathology/lunit_vits8": (21670272, 150, 384, 12, 8, LUNIT, False, 3, None, "bicubic"),
    "pathology/mahmood_uni": (303350784, 342, 1024, 24, 16, IMAGENET, True, 3, None, "bilinear"),
    "pathology/mahmood_uni2_h": (681394176, 343, 1536, 24, 14, IMAGENET, True, 3, None, "bilinear"),
    "pathology/paige_virchow": (631229184, 454, 1280, 32, 14, IMAGENET, True, 3, None, "bicubic"),
    "pathology/paige_virchow2": (631239424, 455, 1280, 32, 14, IMAGENET, True, 3, None, "bicubic"),
    "pathology/prov_gigapath": (1134953984, 566, 1536, 40, 16, IMAGENET, True, 3, 256, "bicubic"),
    "universal/vit_base_patch16_224_dino_1chan": (85405440, 150, 768, 12, 16, NONE, False, 1, None, "bicubic"),
    "universal/vit_small_patch16_224_dino": (21665664, 150, 384, 12, 16, IMAGENET, False, 3, 248, "bicubic"),
    "universal/vit_small_patch16_224_dino_1chan": (21469056, 150, 384, 12, 16, NONE, False, 1, None, "bicubic"),
    "universal/vit_small_patch16_224_random": (21665664, 150, 384, 12, 16, IMAGENET, False, 3, None, "bicubic"),
    "universal/vit_tiny_patch16_224_random": (5524416, 150, 192, 12, 16, HALVES, False, 3, None, "bicubic"),
}
WITH_PATCH_TOKENS = ["pathology/bioptimus_h0_mini", "pathology/paige_virchow", "pathology/paige_virchow2"]


@dataclass
class OnMeta:
    """Constructs without storage, and keeps what the published state dict must fit and how it is adapted."""

    fits: dict[str, torch.Size] | None = None
    adapt: Adapt | None = None
    model: nn.Module | None = None

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:
        if self.model is None:
            with torch.device("meta"):
                self.model = create()
            self.fits = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
            self.adapt = adapt
        return self.model


def shape_of(output: torch.Tensor | list[torch.Tensor]) -> tuple[int, ...] | list[tuple[int, ...]]:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else [tuple(o.shape) for o in output]


@pytest.mark.parametrize("name", FACTS)
def test_a_built_in_backbone_is_what_its_publisher_says(name: str) -> None:
    parameters, tensors, dim, depth, patch, normalisation, gated, channels, resize, interpolation = FACTS[name]
    spec, weights = registry.find(name), OnMeta()
    images = torch.empty(2, channels, 224, 224, device="meta")
    side = 224 // patch

    embedding = spec.build(weights=weights).eval()

    assert (len(weights.fits), sum(s.numel() for s in weights.fits.values())) == (tensors, parameters)
    assert shape_of(embedding(images)) == (2, dim)
    assert (spec.depth, len(embedding.model.blocks)) == (depth, depth)
    assert (spec.patch_size, embedding.model.patch_embed.patch_size) == (patch, (patch, patch))
    declared = spec.preprocessing
    assert (declared.mean, declared.std) == normalisation
    assert (declared.size, declared.channels) == (224, channels)
    assert (declared.resize, declared.interpolation) == (resize, interpolation)
    assert spec.gated is gated
    assert (spec.licence is None) == name.endswith("_random")
    if name in WITH_PATCH_TOKENS:
        assert spec.options == ("include_patch_tokens",)
        assert shape_of(spec.build(weights=weights, include_patch_tokens=True)(images)) == (2, 2 * dim)
    else:
        assert spec.options == ()
    # Last, for it removes the blocks that are not asked for.
    maps = spec.build(weights=weights, out_indices=(-3, -2))
    assert shape_of(maps(images)) == [(2, dim, side, side)] * 2
    assert len(embedding.model.blocks) == depth - 1


def tiny(name: str = "test/tiny_vit", **options: Any) -> Any:
    request = make_request(registry.find(name), None, {"weights": "random", **options})
    return eager.build(request).module


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("out_indices", [1, 2, 3, (-1,), (0,), (-1, -3), (2, 0), (1, 1)])
def test_feature_maps_are_those_of_timm(out_indices: int | tuple[int, ...]) -> None:
    ours = tiny(out_indices=out_indices)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=out_indices, reg_tokens=1, **TINY
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = noise(2, 3, 32, 32)

    with torch.no_grad():
        expected, got = theirs(images), ours(images)

    assert isinstance(got, list)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_the_embedding_is_what_the_plain_timm_model_returns() -> None:
    ours = tiny()
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, reg_tokens=1, **TINY).eval()
    theirs.load_state_dict(ours.model.state_dict(), strict=True)
    images = noise(2, 3, 32, 32)

    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_the_mean_patch_token_leaves_the_register_out() -> None:
    plain, both = tiny("test/tiny_tokens"), tiny("test/tiny_tokens", include_patch_tokens=True)
    images = noise(2, 3, 32, 32)

    with torch.no_grad():
        tokens = both.model.forward_features(images)
        expected = torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], dim=-1)

        assert tokens.shape == (2, 1 + 1 + 16, 48)
        assert torch.equal(both(images), expected)
        assert torch.equal(plain(images), tokens[:, 0])


def test_patch_tokens_and_feature_maps_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="leave out include_patch_tokens or out_indices"):
        tiny("test/tiny_tokens", include_patch_tokens=True, out_indices=1)


def test_out_indices_that_timm_refuses_are_our_error() -> None:
    with pytest.raises(OutIndicesError, match=r"^out_indices=\(7,\): .*out of range"):
        timm_vit("vit_tiny_patch16_224", LoudWeights(), (7,), 32, **TINY)


@pytest.mark.parametrize(
    ("variant", "out_indices"),
    [
        ({}, None),
        ({}, 2),
        ({"reg_tokens": 2}, None),
        ({"reg_tokens": 4, "no_embed_class": True}, None),
        ({"reg_tokens": 1, "global_pool": ""}, None),
    ],
)
def test_a_fixed_size_gives_the_numbers_of_a_dynamic_one(variant: dict[str, Any], out_indices: int | None) -> None:
    def build(image_size: Any) -> nn.Module:
        arguments = {**TINY, **variant, "weight_init": "skip"}
        return timm_vit("vit_tiny_patch16_224", LoudWeights(1), out_indices, image_size, **arguments).eval()

    dynamic = build("dynamic")
    for size in ((32, 32), (48, 48), (40, 64), (16, 24)):
        fixed, images = build(size), noise(2, 3, *size)
        with torch.no_grad():
            got, expected = fixed(images), dynamic(images)
        assert not fixed.model.dynamic_img_size
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", ["small", "base"])
def test_the_grey_stem_is_the_one_that_timm_makes_of_the_rgb_weights(size: str) -> None:
    name, grey = f"vit_{size}_patch16_224.dino", OnMeta()
    with torch.device("meta"):
        rgb = timm.create_model(name, num_classes=0).state_dict()
    stem = "patch_embed.proj.weight"
    rgb[stem] = noise(*rgb[stem].shape)
    registry.find(f"universal/vit_{size}_patch16_224_dino_1chan").build(weights=grey)

    adapted = grey.adapt(dict(rgb), grey.model)

    check_fit(grey.model, adapted, "the grey backbone")
    theirs = timm.create_model(name, in_chans=1, num_classes=0, depth=1)
    published = {**theirs.state_dict(), stem: rgb[stem]}
    config = {"state_dict": published, "num_classes": 0, "first_conv": "patch_embed.proj"}
    timm.models.load_pretrained(theirs, config, in_chans=1)
    assert torch.equal(adapted[stem], theirs.state_dict()[stem])


def test_gpfms_training_checkpoint_gives_the_teachers_tensors_under_timms_names() -> None:
    weights = OnMeta()
    registry.find("pathology/hkust_gpfm").build(weights=weights)
    tensors = weights.model.state_dict()
    # The teacher's blocks lie in four chunks, each block under its number in the whole network.
    teacher = {f"backbone.{chunked(name)}": tensor for name, tensor in tensors.items()}
    assert "backbone.blocks.3.23.mlp.fc2.bias" in teacher
    surplus = ("backbone.mask_token", "dino_head.mlp.0.weight", "dino_head.last_layer.weight_v")
    checkpoint = {"teacher": teacher | {name: torch.empty(1) for name in surplus}}

    adapted = weights.adapt(checkpoint, weights.model)

    check_fit(weights.model, adapted, "GPFM")
    assert all(adapted[name] is tensor for name, tensor in tensors.items())


def chunked(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"blocks.{int(rest.partition('.')[0]) // 6}.{rest}" if first == "blocks" else name


@pytest.mark.parametrize("name", [n for n in FACTS if n.endswith("_random")])
def test_a_random_backbone_is_the_same_on_every_load_and_draws_nothing_from_the_callers_generator(name: str) -> None:
    torch.manual_seed(1)
    first = tiny(name)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()

    second = tiny(name, weights="pretrained", image_size="dynamic", out_indices=12)

    assert torch.equal(torch.random.get_rng_state(), state)
    own, other = first.state_dict(), second.state_dict()
    assert len(other) == 148
    assert all(torch.equal(own[key], tensor) for key, tensor in other.items())
    assert own["model.blocks.0.attn.qkv.weight"].std() > 0
