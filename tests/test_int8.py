"""int8 graphs: right on both runtimes, also where single channels or tokens are a hundred times larger than others."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from exporters import optimise, to_onnx
from exporters.in_memory import open_runner
from exporters.int8.calibration import bundled_calibration
from exporters.int8.conversion import to_int8
from exporters.int8.layers import find_groups
from exporters.int8.observation import observe
from exporters.int8.quantisation import quantise
from exporters.int8.recipes import find_recipe
from exporters.int8.sensitivity import measure_sensitivity, smallest_cosine
from runtime.errors import ExportError, VerificationError
from runtime.facts import HALF, Preprocessing
from runtime.loud import draw_loud, settle

FACTS = Preprocessing(size=64, mean=HALF, std=HALF)
CALIBRATION = bundled_calibration(FACTS, (64, 64))
LIMIT = 0.995


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    given = {"img_size": 64, "embed_dim": 96, "depth": 3, "num_heads": 3, "patch_size": 16} | options
    return timm.create_model(name, num_classes=0, **given)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": vit,
    "layer scale and registers": lambda: vit(init_values=1e-5, reg_tokens=4),
    "SwiGLU": lambda: vit("vit_giant_patch14_dinov2"),
    "Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=64, embed_dim=32, depths=(1, 2), num_heads=(2, 4),
        window_size=4,
    ),
    "ConvNeXt": lambda: timm.create_model(
        "convnext_tiny", num_classes=0, depths=(1, 1, 1, 1), dims=(32, 48, 64, 96)
    ),
    "ResNet": lambda: timm.create_model("resnet10t", num_classes=0),
}  # fmt: skip


def loud(module: nn.Module) -> nn.Module:
    draw_loud(module, 0)
    settle(module.eval(), torch.from_numpy(CALIBRATION[0]))
    return module


def export(module: nn.Module, outputs: int = 1) -> ir.Model:
    names = [f"output_{i}" for i in range(outputs)]
    program = to_onnx.export(module.eval(), torch.from_numpy(CALIBRATION[0][:2]), names, None)
    optimise.optimise(program.model, dynamic=False, precision="int8")
    return program.model


def pictures() -> np.ndarray:
    """Return images that calibration does not see: photographs, and noise."""
    from PIL import Image
    from skimage import data

    from runtime.preprocess import preprocess

    images = [Image.fromarray(image) for image in (data.coffee(), data.astronaut(), data.immunohistochemistry())]
    noise = np.random.default_rng(9).standard_normal((1, 3, 64, 64), dtype=np.float32)
    return np.concatenate([preprocess(images, FACTS), noise])


def serve(model: ir.Model, runtime: str, images: np.ndarray) -> list[np.ndarray]:
    graph = ir.to_proto(model).SerializeToString()
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return session.run(None, {"images": images})
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if runtime.endswith("bf16") else "f32"}
    compiled = core.compile_model(core.read_model(graph), "CPU", hint)
    return [np.array(output) for output in compiled(images).values()]


def cosine(module: nn.Module, model: ir.Model, runtime: str = "onnxruntime") -> float:
    """Return the smallest cosine of an image between eager and the graph."""
    images = pictures()
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
    outputs = [o.numpy() for o in (expected if isinstance(expected, list) else [expected])]
    return smallest_cosine([outputs], [serve(model, runtime, images)])


@pytest.mark.parametrize("name", MODELS)
def test_static_int8_gives_what_eager_gives_on_every_runtime(name: str) -> None:
    module = loud(MODELS[name]())
    model = export(module)

    facts = to_int8(model, CALIBRATION)

    assert facts["fp32_layers"] == []
    assert facts["int8_layers"] > 4
    for runtime in ("onnxruntime", "openvino", "openvino bf16"):
        assert 0.9975 <= cosine(module, model, runtime) < 0.9999999, runtime


@pytest.mark.parametrize("name", ["plain", "layer scale and registers", "SwiGLU", "Swin", "ConvNeXt"])
def test_dynamic_int8_needs_no_images(name: str) -> None:
    module = loud(MODELS[name]())
    model = export(module)

    facts = to_int8(model, None)

    assert facts["quantisation"] == "dynamic"
    for runtime in ("onnxruntime", "openvino"):
        assert LIMIT <= cosine(module, model, runtime) < 0.9999999, runtime


@pytest.mark.parametrize(
    ("batches", "kinds"),
    [
        (CALIBRATION, {"QLinearMatMul", "MatMulIntegerToFloat"}),
        (None, {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}),
    ],
    ids=["static", "dynamic"],
)
def test_onnxruntime_computes_the_layers_in_integers(batches: Any, kinds: set[str], tmp_path: Path) -> None:
    model = export(loud(vit()))
    facts = to_int8(model, batches)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file fits this machine only

    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])

    kept = Counter(node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph)
    assert facts["int8_layers"] == 12
    assert sum(kept[kind] for kind in kinds) == 12
    assert kept["MatMul"] + kept["FusedMatMul"] == 0
    assert kept["MultiHeadAttention"] == 3


def test_weights_are_stored_in_int8_and_the_fp32_ones_are_gone() -> None:
    model = export(loud(vit()))
    before = sum(v.const_value.nbytes for v in model.graph.initializers.values())

    to_int8(model, CALIBRATION)

    after = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert Counter(v.dtype for v in model.graph.initializers.values() if len(v.shape) == 2)[ir.DataType.INT8] == 12
    assert after < 0.45 * before  # the patch embedding, an eighth of this small model, stays in fp32


def test_feature_maps_are_quantised_alike() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = vit()

        def forward(self, images: Tensor) -> list[Tensor]:
            return self.trunk.forward_intermediates(images, indices=2, intermediates_only=True)

    module = loud(Maps())
    model = export(module, outputs=2)

    to_int8(model, CALIBRATION)

    assert [output.name for output in model.graph.outputs] == ["output_0", "output_1"]
    assert cosine(module, model) >= LIMIT


def outlying(module: nn.Module) -> nn.Module:
    """Give a ViT what trained ones have: a few channels of norms, MLPs and the residual hundreds of times larger."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in module.blocks:
            for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                channels = torch.randperm(len(norm.weight), generator=drawn)[:3]
                norm.weight[channels] *= 200
                norm.bias[channels] *= 200
                layer.weight[:, channels] /= 200
            channels = torch.randperm(block.mlp.fc2.in_features, generator=drawn)[:3]
            block.mlp.fc1.weight[channels] *= 300
            block.mlp.fc2.weight[:, channels] /= 300
    return module


def plain_int8(model: ir.Model) -> None:
    """Quantise with one range for each input and nothing else."""
    groups = find_groups(model.graph)
    images = [batch[i : i + 1] for batch in CALIBRATION for i in range(len(batch))]
    for group, seen in zip(groups, observe(model, groups, images), strict=True):
        quantise(model.graph, group, find_recipe(group, seen, movable=False, gain=1.0))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "openvino bf16"])
def test_outlier_channels_are_moved_into_the_weights(runtime: str) -> None:
    module = outlying(loud(vit()))
    model = export(module)
    plain = model.clone()

    plain_int8(plain)
    facts = to_int8(model, CALIBRATION)

    assert cosine(module, plain, runtime) < 0.98
    assert cosine(module, model, runtime) >= LIMIT
    assert facts["divided_inputs"] >= 9  # before qkv and both layers of the MLP, in each block
    assert facts["fp32_layers"] == []


class Tokens(nn.Module):
    """Three layers; in `outlying`, one token is ten thousand times larger than the others and counts for no more."""

    def __init__(self, outlying: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 16, stride=16)
        self.first, self.second, self.third = (nn.Linear(48, 48) for _ in range(3))
        self.register_buffer("sizes", torch.tensor([outlying] + [1.0] * 15)[:, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(self.patches(images).flatten(2).transpose(1, 2)).tanh()
        return self.third((self.second(tokens * self.sizes) / self.sizes).tanh()).mean(1)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_layer_that_no_range_fits_stays_in_fp32_and_is_named(size: float) -> None:
    module = loud(Tokens(size))
    model = export(module)

    facts = to_int8(model, CALIBRATION)

    assert facts["fp32_layers"] == ([] if size == 1 else ["second"])
    assert facts["int8_layers"] == (3 if size == 1 else 2)
    assert cosine(module, model) >= LIMIT


def test_sensitivity_finds_the_layer_that_loses_most() -> None:
    model = export(loud(Tokens(1e4)))
    groups = find_groups(model.graph)
    images = [CALIBRATION[0][i : i + 1] for i in range(4)]
    recipes = [
        find_recipe(group, seen, movable=True, gain=1.0)
        for group, seen in zip(groups, observe(model, groups, images), strict=True)
    ]

    cosines = measure_sensitivity(model, recipes, images)

    assert [group.name for group in groups] == ["first", "second", "third"]
    assert cosines[1] < 0.9
    assert min(cosines[0], cosines[2]) > 0.999


def test_a_graph_that_int8_ruins_is_refused() -> None:
    class Everywhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Tokens(1e5) for _ in range(3))

        def forward(self, images: Tensor) -> Tensor:
            read = [part.sizes * part.patches(images).flatten(2).mT for part in self.parts]
            pairs = zip(self.parts, read, strict=True)
            return torch.cat([part.second(tokens) / part.sizes for part, tokens in pairs], -1)

    with pytest.raises(VerificationError, match=r"the 2 most sensitive of 3 layers in fp32; 0\.9975 is needed"):
        to_int8(export(loud(Everywhere())), CALIBRATION)


def fingerprint(model: ir.Model) -> str:
    return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()


@pytest.mark.parametrize("batches", [CALIBRATION, None], ids=["static", "dynamic"])
def test_the_graph_that_it_was_cloned_from_is_left_alone_and_a_rebuild_is_the_same(batches: Any) -> None:
    original = export(outlying(loud(vit())))
    before = fingerprint(original)
    clones = [original.clone(), original.clone()]

    for clone in clones:
        to_int8(clone, batches)

    assert fingerprint(original) == before
    assert fingerprint(clones[0]) == fingerprint(clones[1]) != before


def test_with_constant_ranges_an_image_does_not_depend_on_its_batch() -> None:
    model = export(loud(vit()))
    to_int8(model, CALIBRATION)
    images = pictures()

    together = serve(model, "onnxruntime", images)[0]

    alone = np.concatenate([serve(model, "onnxruntime", images[i : i + 1])[0] for i in range(len(images))])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_gemm_is_quantised_with_its_bias() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 48, 16, stride=16), nn.Linear(48, 24)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.stem(images).mean((2, 3)).tanh())

    module = loud(Head())
    for batches in (CALIBRATION, None):
        model = export(module)
        assert "Gemm" in {node.op_type for node in model.graph}
        to_int8(model, batches)
        assert "Gemm" not in {node.op_type for node in model.graph}
        assert 0.999 < cosine(module, model) < 0.9999999


def test_what_has_nothing_to_quantise_says_so() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 8, stride=8)

        def forward(self, images: Tensor) -> Tensor:
            return self.stem(images).mean((2, 3))

    for batches in (CALIBRATION, None):
        with pytest.raises(ExportError, match="Nothing in this graph can be computed in int8"):
            to_int8(export(Stem()), batches)


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "none were given"), ([np.full((1, 3, 64, 64), np.nan, np.float32)], "hold NaN or infinite values")],
)
def test_calibration_images_that_are_none_are_refused(batches: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        to_int8(export(loud(vit())), batches)


def test_a_graph_runs_from_memory_on_its_own_weights() -> None:
    module = loud(vit())
    model = export(module)
    before = fingerprint(model)
    block = next(node for node in model.graph if node.op_type == "LayerNormalization")

    normed, embedding = open_runner(model, [block.outputs[0], model.graph.outputs[0]])(pictures())

    with torch.no_grad():
        np.testing.assert_allclose(embedding, module(torch.from_numpy(pictures())).numpy(), atol=2e-5)
    assert normed.shape == (4, 17, 96)
    assert fingerprint(model) == before
