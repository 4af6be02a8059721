"""Backbones of the transformers library: the published facts, plain transformers' numbers, and the published files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from conftest import FORMS, request_for
from safetensors.torch import save_file
from torch import nn

from exporters import pipeline
from exporters.plan import Job
from runtime import registry
from runtime.backbones.transformers_vit import transformers_vit
from runtime.errors import OptionError, OutIndicesError, WeightsError
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Url
from runtime.loud import draw_loud
from runtime.registry import register_model
from runtime.weights import Adapt, LoudWeights, PublishedWeights

IMAGENET, HIBOU = (IMAGENET_MEAN, IMAGENET_STD), ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
# As published: parameters with the mask token; whether there is one; embedding; blocks; patch; mean and std; filter of
# the resize; gated.
FACTS = {
    "pathology/owkin_phikon": (85798656, False, 768, 12, 16, IMAGENET, "bilinear", False),
    "pathology/owkin_phikon_v2": (303351808, True, 1024, 24, 16, IMAGENET, "bicubic", False),
    "pathology/kaiko_midnight_12k": (1136480768, True, 1536, 40, 14, (HALF, HALF), "bilinear", False),
    "pathology/histai_hibou_b": (85741056, True, 768, 12, 14, HIBOU, "bicubic", True),
    "pathology/histai_hibou_l": (303659264, True, 1024, 24, 14, HIBOU, "bicubic", True),
}
SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8}
# Small models of the four kinds. All tables but the first are for another size than the 32 pixels used here.
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "phikon": ("ViT", 32, {"intermediate_size": 96}),
    "phikon_v2": ("Dinov2", 48, {}),
    "midnight": ("Dinov2", 56, {"use_swiglu_ffn": True}),
    "hibou": ("Dinov2WithRegisters", 40, {"use_swiglu_ffn": True, "num_register_tokens": 4}),
}
SIZES = [(32, 32), (40, 40), (24, 48), (56, 56), (64, 16)]


class OnMeta:
    """Constructs without storage, and keeps the shapes that a state dict must fit."""

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:  # noqa: ARG002
        with torch.device("meta"):
            model = create()
        self.fits = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return model


@pytest.mark.parametrize("name", FACTS)
def test_a_backbone_is_what_its_publisher_says(name: str) -> None:
    parameters, masked, dim, depth, patch, normalisation, interpolation, gated = FACTS[name]
    spec, weights = registry.find(name), OnMeta()
    images = torch.empty(2, 3, 224, 224, device="meta")

    embedding = spec.build(weights=weights)(images)
    maps = spec.build(weights=weights, out_indices=(-2, -1))

    count = sum(shape.numel() for shape in weights.fits.values())
    assert count + masked * dim == parameters
    assert embedding.shape == (2, dim)
    assert [tuple(m.shape) for m in maps(images)] == [(2, dim, 224 // patch, 224 // patch)] * 2
    assert (maps.indices, maps.normed) == ([depth - 2, depth - 1], [False, True])
    declared = spec.preprocessing
    assert (spec.depth, spec.patch_size, spec.gated, spec.extra) == (depth, patch, gated, "transformers")
    assert (declared.mean, declared.std) == normalisation
    assert (declared.size, declared.resize, declared.interpolation) == (224, None, interpolation)


def test_midnight_gives_what_its_authors_use_on_request() -> None:
    spec, images = registry.find("pathology/kaiko_midnight_12k"), torch.empty(2, 3, 224, 224, device="meta")
    assert spec.build(weights=OnMeta(), include_patch_tokens=True)(images).shape == (2, 3072)


class Keep:
    """Loud weights; keeps a copy of the plain transformers model that holds them."""

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:  # noqa: ARG002
        model = create()
        draw_loud(model, 0)
        self.plain = copy.deepcopy(model).eval()
        return model


def small(kind: str, weights: Any, out_indices: Any = None, image_size: Any = 32, **options: Any) -> nn.Module:
    architecture, native, config = KINDS[kind]
    return transformers_vit(
        architecture, weights, out_indices, image_size, native_size=native, **SMALL, **config, **options
    ).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def run_plain(model: nn.Module, images: torch.Tensor) -> Any:
    """Run the whole transformers model as a user would."""
    other_size = {"interpolate_pos_encoding": True} if isinstance(model, transformers.ViTModel) else {}
    with torch.no_grad():
        return model(images, output_hidden_states=True, **other_size)


def as_map(kind: str, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    prefix = 5 if kind == "hibou" else 1
    patches = tokens[:, prefix:].permute(0, 2, 1)
    return patches.reshape(len(tokens), -1, size[0] // 8, size[1] // 8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_size_gives_the_bits_of_plain_transformers(kind: str, size: tuple[int, int]) -> None:
    weights, images = Keep(), noise(2, 3, *size)
    with torch.no_grad():
        embedding = small(kind, weights, None, size)(images)
        maps = small(kind, weights, 3, size)(images)

    plain = run_plain(weights.plain, images)

    assert torch.equal(embedding, plain.last_hidden_state[:, 0])
    assert torch.equal(maps[0], as_map(kind, plain.hidden_states[1], size))
    assert torch.equal(maps[1], as_map(kind, plain.hidden_states[2], size))
    assert torch.equal(maps[2], as_map(kind, plain.last_hidden_state, size))


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_sizes_give_the_numbers_of_plain_transformers(kind: str) -> None:
    weights = Keep()
    embedding, maps = small(kind, weights, None, "dynamic"), small(kind, weights, (0, 2), "dynamic")
    for size in SIZES:
        images = noise(2, 3, *size)
        plain = run_plain(weights.plain, images)
        with torch.no_grad():
            torch.testing.assert_close(embedding(images), plain.last_hidden_state[:, 0], rtol=0, atol=2e-5)
            first, last = maps(images)
        torch.testing.assert_close(first, as_map(kind, plain.hidden_states[1], size), rtol=0, atol=2e-5)
        torch.testing.assert_close(last, as_map(kind, plain.last_hidden_state, size), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("out_indices", "indices", "normed"),
    [
        (1, [2], [True]),
        (2, [1, 2], [False, True]),
        ((-1,), [2], [True]),
        ((0,), [0], [False]),
        ((-1, -3), [0, 2], [False, True]),
        ((1, 0), [0, 1], [False, False]),
        ((1, 1, -2), [1], [False]),
    ],
)
def test_out_indices_name_blocks_in_ascending_order(out_indices: Any, indices: list[int], normed: list[bool]) -> None:
    weights, images = Keep(), noise(2, 3, 32, 32)
    maps = small("hibou", weights, out_indices)
    plain = run_plain(weights.plain, images)
    tokens = [*plain.hidden_states[1:3], plain.last_hidden_state]

    with torch.no_grad():
        got = maps(images)

    assert (maps.indices, maps.normed) == (indices, normed)
    assert [torch.equal(m, as_map("hibou", tokens[i], (32, 32))) for m, i in zip(got, indices, strict=True)] == [
        True
    ] * len(indices)
    assert len(maps.blocks) == indices[-1] + 1
    assert isinstance(maps.norm, nn.LayerNorm) is normed[-1]


@pytest.mark.parametrize("kind", ["midnight", "hibou"])
def test_the_mean_patch_token_leaves_registers_out(kind: str) -> None:
    weights, images = Keep(), noise(2, 3, 32, 32)
    both = small(kind, weights, include_patch_tokens=True)
    tokens = run_plain(weights.plain, images).last_hidden_state
    with torch.no_grad():
        assert torch.equal(both(images), torch.cat([tokens[:, 0], tokens[:, -16:].mean(1)], dim=-1))


def test_patch_tokens_and_feature_maps_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="leave out include_patch_tokens or out_indices"):
        small("midnight", LoudWeights(), 1, include_patch_tokens=True)


@pytest.mark.parametrize("out_indices", [0, 4, (3,), ()])
def test_maps_that_do_not_exist_are_an_error(out_indices: Any) -> None:
    with pytest.raises(OutIndicesError, match="out_indices="):
        small("phikon", LoudWeights(), out_indices)


@pytest.mark.parametrize("image_size", [32, "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_moves_the_output(kind: str, image_size: Any) -> None:
    model, images = small(kind, LoudWeights(), 3, image_size), noise(1, 3, 32, 32)
    with torch.no_grad():
        before = torch.cat([m.flatten() for m in model(images)])
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            # What is added to all keys alike is nothing to a softmax.
            parameter += 0.3 * noise(*parameter.shape)
            moved = torch.cat([m.flatten() for m in model(images)]) - before
            parameter.copy_(kept)
            assert moved.abs().max() > 1e-3 or name.endswith(("k_proj.bias", "key.bias")), name


def published(kind: str) -> dict[str, torch.Tensor]:
    """Return random tensors as the hub's files name them: the layout of transformers 4, written out."""
    native, config = KINDS[kind][1:]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 48),
        "embeddings.position_embeddings": (1, 1 + (native // 8) ** 2, 48),
        "embeddings.patch_embeddings.projection.weight": (48, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (48,),
        "layernorm.weight": (48,),
        "layernorm.bias": (48,),
    }
    linear = {f"attention.attention.{part}": (48, 48) for part in ("query", "key", "value")}
    linear["attention.output.dense"] = (48, 48)
    vectors = []
    if kind == "phikon":
        linear |= {"intermediate.dense": (96, 48), "output.dense": (48, 96)}
        norms = ("layernorm_before", "layernorm_after")
    else:
        shapes["embeddings.mask_token"] = (1, 48)
        norms, vectors = ("norm1", "norm2"), ["layer_scale1.lambda1", "layer_scale2.lambda1"]
        swiglu = {"mlp.weights_in": (256, 48), "mlp.weights_out": (48, 128)}
        linear |= swiglu if "use_swiglu_ffn" in config else {"mlp.fc1": (192, 48), "mlp.fc2": (48, 192)}
    if kind == "hibou":
        shapes["embeddings.register_tokens"] = (1, 4, 48)
    for block in (f"encoder.layer.{i}." for i in range(3)):
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for name in norms:
            shapes |= {f"{block}{name}.weight": (48,), f"{block}{name}.bias": (48,)}
        shapes |= {block + name: (48,) for name in vectors}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def in_dinov2s_own_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same weights as DINOv2's own code (and HistAI's release file) names them."""
    own = {
        "cls_token": tensors["embeddings.cls_token"],
        "mask_token": tensors["embeddings.mask_token"],
        "register_tokens": tensors["embeddings.register_tokens"],
        "pos_embed": tensors["embeddings.position_embeddings"],
    }
    for leaf in ("weight", "bias"):
        own[f"patch_embed.proj.{leaf}"] = tensors[f"embeddings.patch_embeddings.projection.{leaf}"]
        own[f"norm.{leaf}"] = tensors[f"layernorm.{leaf}"]
        for i in range(3):
            theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
            qkv = [tensors[f"{theirs}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            own[f"{ours}attn.qkv.{leaf}"] = torch.cat(qkv)
            own[f"{ours}attn.proj.{leaf}"] = tensors[f"{theirs}attention.output.dense.{leaf}"]
            own[f"{ours}mlp.w12.{leaf}"] = tensors[f"{theirs}mlp.weights_in.{leaf}"]
            own[f"{ours}mlp.w3.{leaf}"] = tensors[f"{theirs}mlp.weights_out.{leaf}"]
            for n in "12":
                own[f"{ours}norm{n}.{leaf}"] = tensors[f"{theirs}norm{n}.{leaf}"]
                own[f"{ours}ls{n}.gamma"] = tensors[f"{theirs}layer_scale{n}.lambda1"]
    return own


def read_by_transformers(kind: str, tensors: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    architecture, native, config = KINDS[kind]
    described = getattr(transformers, f"{architecture}Config")(image_size=native, **SMALL, **config)
    described.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pooler = {"add_pooling_layer": False} if kind == "phikon" else {}
    model: nn.Module = getattr(transformers, f"{architecture}Model").from_pretrained(folder, **pooler)
    return model.eval()


def loaded(kind: str, tensors: dict[str, torch.Tensor], path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Load a published file as a user's load_model does, but for the download."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    monkeypatch.setattr("runtime.weights.fetch", lambda *_: (path, "revision"))
    return small(kind, PublishedWeights(Url("http://127.0.0.1:9/x"), "my/model"))


POOLER = {"pooler.dense.weight": torch.zeros(48, 48), "pooler.dense.bias": torch.zeros(48)}
LAYOUTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]] = {
    "phikon": ("phikon", lambda t: t),
    "phikon with a pooler": ("phikon", lambda t: t | POOLER),
    "phikon under its head's prefix": ("phikon", lambda t: {f"vit.{k}": v for k, v in t.items()}),
    "phikon_v2": ("phikon_v2", lambda t: t),
    "phikon_v2 without mask token": ("phikon_v2", lambda t: {k: v for k, v in t.items() if "mask" not in k}),
    "midnight": ("midnight", lambda t: t),
    "hibou": ("hibou", lambda t: t),
    "hibou from HistAI's repository": ("hibou", in_dinov2s_own_layout),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_file_gives_the_numbers_that_transformers_reads_from_it(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, write = LAYOUTS[layout]
    tensors, images = published(kind), noise(2, 3, 32, 32)

    ours = loaded(kind, write(tensors), tmp_path / "published.safetensors", monkeypatch)

    theirs = run_plain(read_by_transformers(kind, tensors, tmp_path), images)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("phikon", {"classifier.weight": torch.ones(2, 48)}, r"1 unexpected \(classifier.weight\)"),
        ("phikon", {"encoder.layer.1.output.dense.bias": None}, r"1 missing \(\S*1\.\S+\.bias\)"),
        ("phikon_v2", {"encoder.layer.3.norm1.bias": torch.ones(48)}, r"1 unexpected \(\S*3.norm1.bias\)"),
        ("midnight", {"encoder.layer.0.mlp.weights_in.bias": None}, "missing .*mlp"),
        ("hibou", {"embeddings.register_tokens": torch.ones(1, 8, 48)}, r"1 of another shape \(\S*register_tokens"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    kind: str, change: dict[str, Any], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {key: tensor for key, tensor in (published(kind) | change).items() if tensor is not None}
    with pytest.raises(WeightsError, match=problem):
        loaded(kind, tensors, tmp_path / "published.safetensors", monkeypatch)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("phikon", {"image_size": (48, 24), "out_indices": 2}),
        ("midnight", {}),
        ("hibou", {"image_size": "dynamic", "out_indices": (0, 2)}),
    ],
)
def test_artifacts_pass_the_gate_and_hold_no_resize(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    source, facts = Url("http://127.0.0.1:9/x.pth"), Preprocessing(size=32, mean=HALF, std=HALF)

    @register_model("test/small", preprocessing=facts, source=source, depth=3, patch_size=8, extra="transformers")
    def build(weights: Any, out_indices: Any = None, image_size: Any = 32) -> nn.Module:
        return small(kind, weights, out_indices, image_size)

    request = request_for("test/small", weights="random", artifacts=str(tmp_path), **options)
    outcomes = pipeline.build(Job(request, FORMS))

    assert [o.status for o in outcomes] == ["built", "built"], outcomes
    (graph,) = (onnx.load(path, load_external_data=False).graph for path in tmp_path.rglob("*.onnx"))
    kinds = {node.op_type for node in graph.node}
    assert "MatMul" in kinds
    assert "Resize" not in kinds
