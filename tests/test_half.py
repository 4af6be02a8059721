"""fp16 and bf16: the numbers are those of 16 bits, and what 16 bits cannot hold stays in float32."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
from outliers import inject_outliers
from torch import Tensor, nn

from exporters import to_onnx
from exporters.float64 import run_in_float64
from exporters.gate import LIMITS, gate, gate_float64, require_finite
from exporters.half.casts import compute_in_half
from exporters.half.conversion import to_half
from exporters.half.eager import run_in_half
from exporters.half.emulation import emulate, run_emulated
from exporters.half.islands import float_nodes
from exporters.half.ranges import float_values, measure
from exporters.in_memory import open_runner
from exporters.inputs import verification_inputs
from exporters.optimise import optimise
from exporters.parity import compare, relative_rms
from exporters.pool import WeightPool
from runtime.errors import VerificationError
from runtime.facts import HALF, Preprocessing
from runtime.loud import draw_loud, settle
from runtime.manifest import Manifest

VIT = {"embed_dim": 96, "num_heads": 3, "depth": 4, "num_classes": 0}
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "plain ViT": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, **VIT),
    "LayerScale and registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **VIT),
    "SwiGLU": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=64, mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=4, **VIT
    ),
    "Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1, 3, 1), num_classes=0
    ),
    "ConvNeXt": lambda: timm.create_model("convnext_atto", dims=(16, 32, 64, 128), depths=(1, 1, 3, 1), num_classes=0),
    "ResNet": lambda: timm.create_model("resnet18", channels=(16, 32, 64, 128), num_classes=0),
}
SIDES = {"LayerScale and registers": 56, "Swin": 56}
# What a trained network has, and more than fp16 holds.
TRAINED, OVERFLOWING = {"stream": 2500.0, "hidden": 5000.0}, {"stream": 30000.0, "hidden": 120000.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def make(name: str, **outliers: float) -> tuple[nn.Module, list[Any]]:
    """Return a small backbone with loud weights, and its verification batches."""
    torch.manual_seed(0)
    module, side = BACKBONES[name]().eval(), SIDES.get(name, 64)
    draw_loud(module, 0)
    if outliers:
        inject_outliers(module, **outliers)
    batches = list(verification_inputs(Preprocessing(size=side, mean=HALF, std=HALF), [(side, side)]))
    settle(module, torch.from_numpy(batches[0]))
    return module, batches


def exported(module: nn.Module, images: Any) -> ir.Model:
    program = to_onnx.export(module, torch.from_numpy(images[:1]).repeat(2, 1, 1, 1), ["embedding"], None)
    optimise(program.model, dynamic=False, target="cuda")
    return program.model


def everything_in_half(model: ir.Model, precision: str) -> ir.Model:
    """Return the graph without islands."""
    narrowed = model.clone()
    floats = {str(value.name) for value in float_values(narrowed)}
    compute_in_half(narrowed, set(float_nodes(narrowed, floats)), floats, precision)
    return narrowed


def pass_gate(module: nn.Module, model: ir.Model, batches: list[Any], precision: str) -> None:
    """Raise unless a graph's numbers in 16 bits keep the limits of the gate."""
    with torch.no_grad():
        reference = [[module(torch.from_numpy(batch)).numpy()] for batch in batches]
    got = run_emulated(model, batches)
    require_finite("the artifact", ["embedding"], got)
    gate(compare(["embedding"], reference, got), LIMITS[precision, 2])
    images = torch.from_numpy(np.concatenate(batches))
    exact = run_in_float64(module, images)[0].numpy()
    eager = run_in_half(module, images, precision)[0].numpy()
    if np.isfinite(eager).all():
        own, error = relative_rms(exact, eager), relative_rms(exact, np.concatenate([batch[0] for batch in got]))
        gate_float64([(own, error)], LIMITS[precision, 2])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_in_16_bits_passes_the_gate_with_the_outliers_of_a_trained_network(
    name: str, precision: str
) -> None:
    module, batches = make(name, **TRAINED)
    model = exported(module, batches[0])

    report = to_half(model, precision=precision, batches=batches)

    assert report["nodes"] > 2 * sum(entry["nodes"] for entry in report["float32"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    pass_gate(module, model, batches, precision)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "ResNet"])
def test_fp16_overflows_without_islands_and_passes_the_gate_with_them(name: str) -> None:
    module, batches = make(name, **OVERFLOWING)
    model = exported(module, batches[0])
    naive = everything_in_half(model, "fp16")

    report = to_half(model, precision="fp16", batches=batches)

    assert not np.isfinite(np.concatenate([run[0] for run in run_emulated(naive, batches)])).all()
    assert report["largest"]["magnitude"] > 65504
    assert "range" in {entry["reason"] for entry in report["float32"]}
    pass_gate(module, model, batches, "fp16")


class RootMeanSquareNorm(nn.Module):
    """A norm written as torch operations, as many transformers have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        wide = tokens.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(tokens.dtype)


def test_the_squares_of_outliers_inside_a_decomposed_norm_stay_in_float32() -> None:
    module, batches = make("plain ViT", **TRAINED)
    for block in module.blocks:  # type: ignore[union-attr]
        block.norm1, block.norm2 = RootMeanSquareNorm(96), RootMeanSquareNorm(96)
    model = exported(module, batches[0])
    naive = everything_in_half(model, "fp16")

    report = to_half(model, precision="fp16", batches=batches)

    # Without islands the squares are infinite, so the norm gives zeros: finite, and wrong.
    with pytest.raises(VerificationError, match="relative RMS error against float64"):
        pass_gate(module, naive, batches, "fp16")
    assert {"operator": "ReduceMean", "nodes": 8, "reason": "operator"} in report["float32"]
    pass_gate(module, model, batches, "fp16")


def test_the_cpu_provider_hides_overflow_in_fp16_and_emulation_shows_it() -> None:
    images, up = input_of("b", 8), constant("up", 1000 * np.eye(8, dtype=np.float32))
    down = constant("down", np.eye(8, dtype=np.float32) / 1000)
    nodes, output = chain(images, [("MatMul", [up]), ("MatMul", [down])])
    naive = everything_in_half(graph_of(nodes, output, images, [up, down]), "fp16")
    batch = np.full((2, 8), 100, np.float32)

    proto = ir.to_proto(naive).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])

    np.testing.assert_allclose(session.run(None, {"images": batch})[0], batch, rtol=1e-3)
    assert not np.isfinite(run_emulated(naive, [batch])[0][0]).any()


def graph_of(nodes: list[ir.Node], output: ir.Value, images: ir.Value, weights: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(
        [images], [output], nodes=nodes, initializers=weights, opset_imports={"": 18, "com.microsoft": 1}, name="test"
    )
    return ir.Model(graph, ir_version=10)


def input_of(*shape: Any) -> ir.Value:
    return ir.Value(name="images", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def constant(name: str, array: Any) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def chain(images: ir.Value, steps: list[tuple[str, list[ir.Value]]]) -> tuple[list[ir.Node], ir.Value]:
    """Return nodes of which each reads the one before, first."""
    nodes: list[ir.Node] = []
    value = images
    for position, (operator, others) in enumerate(steps):
        domain = "com.microsoft" if operator in ("QuickGelu", "BiasGelu") else ""
        nodes.append(ir.node(operator, [value, *others], domain=domain))
        value = nodes[-1].outputs[0]
        value.name = f"step_{position}"
    return nodes, value


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_value_is_rounded_as_numpy_rounds_it(precision: str) -> None:
    import ml_dtypes

    dtype: Any = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]
    images, factor, term = input_of("b", 64), constant("factor", np.float32(1.37)), constant("term", np.float32(0.3))
    same = constant("same", np.eye(64, dtype=np.float32))
    steps = [("MatMul", [same]), ("Mul", [factor]), ("Add", [term]), ("Mul", [factor]), ("MatMul", [same])]
    nodes, output = chain(images, steps)
    model = graph_of(nodes, output, images, [factor, term, same])
    batch = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)

    to_half(model, precision=precision, batches=[batch])
    (got,) = run_emulated(model, [batch])[0]

    by, plus = dtype(1.37), dtype(0.3)
    np.testing.assert_array_equal(got, (((batch.astype(dtype) * by) + plus) * by).astype(np.float32))


def test_fused_nodes_compute_in_16_bits_and_stay_in_float32_where_a_value_is_too_large() -> None:
    rng = np.random.default_rng(0)
    images = input_of("b", 6, 16)
    weights = {name: constant(name, rng.standard_normal((16, 16), dtype=np.float32) / 4) for name in "qkvow"}
    scale, shift = constant("scale", np.ones(16, np.float32)), constant("shift", np.full(16, 0.1, np.float32))
    nodes = [ir.node("MatMul", [images, weights[name]]) for name in "qkv"]
    heads = ir.node("MultiHeadAttention", [n.outputs[0] for n in nodes], {"num_heads": 2}, domain="com.microsoft")
    merged = ir.node("MatMul", [heads.outputs[0], weights["o"]])
    skip = ir.node(
        "SkipLayerNormalization",
        [images, merged.outputs[0], scale, shift],
        {"epsilon": 1e-6},
        num_outputs=4,
        domain="com.microsoft",
    )
    hidden = ir.node("MatMul", [skip.outputs[0], weights["w"]])
    active = ir.node("BiasGelu", [hidden.outputs[0], shift], domain="com.microsoft")
    quick = ir.node("QuickGelu", [active.outputs[0]], {"alpha": 1.702}, domain="com.microsoft")
    last = ir.node("Add", [skip.outputs[3], quick.outputs[0]])
    last.outputs[0].name = "embedding"
    every = [*nodes, heads, merged, skip, hidden, active, quick, last]
    fp32 = graph_of(every, last.outputs[0], images, [*weights.values(), scale, shift])
    small = rng.standard_normal((2, 6, 16), dtype=np.float32)
    large = small.copy()
    large[:, 0, 3] = 30000

    reports = {}
    for batch in (small, large):
        model = fp32.clone()
        report = to_half(model, precision="fp16", batches=[batch])
        (expected,) = open_runner(fp32, list(fp32.graph.outputs))(batch)
        (got,) = run_emulated(model, [batch])[0]
        assert relative_rms(expected, got) < 1e-3
        reports[batch.max() > 100] = report
    assert reports[False]["nodes"] == 10
    assert reports[False]["float32"] == []
    kept = {entry["operator"]: entry["reason"] for entry in reports[True]["float32"]}
    assert kept["SkipLayerNormalization"] == "range"
    assert kept["Add"] == "range"
    assert "BiasGelu" not in kept


def test_weights_too_large_or_too_small_for_fp16_keep_their_nodes_in_float32() -> None:
    images = input_of("b", 8)
    large = constant("large", np.array([1e5] + [1.0] * 7, np.float32))
    tiny = constant("tiny", np.full(8, 1e-6, np.float32))
    back, plain = constant("back", np.full(8, 1e6, np.float32)), constant("plain", np.eye(8, dtype=np.float32))
    steps = [("Mul", [tiny]), ("Mul", [back]), ("MatMul", [plain]), ("Add", [large]), ("Erf", [])]
    nodes, output = chain(images, steps)
    model = graph_of(nodes, output, images, [large, tiny, back, plain])

    report = to_half(model, precision="fp16", batches=[np.ones((2, 8), np.float32)])

    assert {(e["operator"], e["reason"]): e["nodes"] for e in report["float32"]} == {
        ("Add", "weight"): 1, ("Mul", "weight"): 2, ("Erf", "range"): 1
    }  # fmt: skip
    assert {str(v.name): v.const_value.dtype for v in model.graph.initializers.values() if v.const_value} == {
        "large": ir.DataType.FLOAT, "tiny": ir.DataType.FLOAT, "back": ir.DataType.FLOAT,
        "plain_fp16": ir.DataType.FLOAT16,
    }  # fmt: skip


def test_the_infinities_of_a_mask_do_not_count_as_overflow() -> None:
    images, mask = input_of("b", 8), constant("mask", np.array([0, -np.inf] * 4, np.float32))
    nodes, output = chain(images, [("Add", [mask]), ("Softmax", [])])
    model = graph_of(nodes, output, images, [mask])
    batch = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)

    report = to_half(model, precision="fp16", batches=[batch])
    (got,) = run_emulated(model, [batch])[0]

    assert report["nodes"] == 2
    assert (got[:, 1::2] == 0).all()
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-3)


def test_sizes_are_read_without_a_cast_and_computed_without_rounding() -> None:
    images, target = input_of("b", 5001), constant("factor", np.float32(2))
    double = ir.node("Softmax", [images])
    shape = ir.node("Shape", [double.outputs[0]])
    wide = ir.node("Cast", [shape.outputs[0]], {"to": ir.DataType.FLOAT})
    count = ir.node("Add", [wide.outputs[0], target])
    back = ir.node("Cast", [count.outputs[0]], {"to": ir.DataType.INT64})
    less = constant("two", np.array([2, 2], np.int64))
    original = ir.node("Sub", [back.outputs[0], less])
    reshaped = ir.node("Reshape", [double.outputs[0], original.outputs[0]])
    reshaped.outputs[0].name = "embedding"
    every = [double, shape, wide, count, back, original, reshaped]
    model = graph_of(every, reshaped.outputs[0], images, [target, less])
    batch = np.ones((2, 5001), np.float32)

    report = to_half(model, precision="bf16", batches=[batch])

    assert report["nodes"] == 2
    assert [n.op_type for n in model.graph].count("Cast") == 4  # two of its own, one at each border
    assert run_emulated(model, [batch])[0][0].shape == (2, 5001)


def test_inputs_and_outputs_stay_float32_and_the_graph_it_was_cloned_from_unchanged() -> None:
    module, batches = make("plain ViT")
    fp32 = exported(module, batches[0])
    before = ir.to_proto(fp32).SerializeToString(deterministic=True)
    model = fp32.clone()

    to_half(model, precision="fp16", batches=batches)

    assert [v.dtype for v in [*model.graph.inputs, *model.graph.outputs]] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in model.graph.outputs] == ["embedding"]
    assert ir.to_proto(fp32).SerializeToString(deterministic=True) == before
    sizes = [sum(v.const_value.nbytes for v in m.graph.initializers.values() if v.const_value) for m in (fp32, model)]
    assert sizes[1] < 0.52 * sizes[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_are_byte_identical_and_survive_the_pool(tmp_path: Path, precision: str) -> None:
    module, batches = make("LayerScale and registers")
    fp32 = exported(module, batches[0])
    graphs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        model = fp32.clone()
        to_half(model, precision=precision, batches=batches)
        expected = run_emulated(model, batches[:1])
        to_onnx.write(model, WeightPool(folder, Manifest("test/half", ()), folder), folder / "model.onnx", {})
        graphs.append({file.name: file.read_bytes() for file in folder.iterdir()})

    assert graphs[0] == graphs[1]
    stored = run_emulated(ir.load(tmp_path / "first/model.onnx"), batches[:1])
    np.testing.assert_array_equal(stored[0][0], expected[0][0])


def test_the_largest_magnitude_is_that_over_all_batches() -> None:
    images, factor = input_of("b", 4), constant("factor", np.float32(3))
    nodes, output = chain(images, [("Mul", [factor]), ("Neg", []), ("Relu", [])])
    model = graph_of(nodes, output, images, [factor])

    found = measure(model, [np.full((2, 4), 1, np.float32), np.full((1, 4), 2, np.float32)])

    assert found == {"images": 2.0, "step_0": 6.0, "step_1": 6.0, "step_2": 0.0}
    assert len(model.graph) == 3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_eager_in_16_bits_is_the_module_converted(name: str, precision: str) -> None:
    module, batches = make(name)
    images = torch.from_numpy(batches[0])
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    before = {key: value.clone() for key, value in module.state_dict().items()}

    (got,) = run_in_half(module, images, precision)

    with torch.no_grad():
        expected = copy.deepcopy(module).to(dtype)(images.to(dtype))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected.float())
    assert not torch.equal(got, module(images))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_what_a_module_widens_to_float32_itself_stays_wide() -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.3]))

        def forward(self, images: Tensor) -> Tensor:
            return (images.float() ** 2).mean(1).sqrt().to(images.dtype) * self.scale

    (got,) = run_in_half(Squares(), torch.full((2, 3), 3000.0), "fp16")

    assert got.tolist() == [float(torch.tensor(3000.0).half() * torch.tensor(0.3).half())] * 2


def test_an_operation_without_a_kernel_in_16_bits_is_computed_in_float32_and_rounded() -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.tensor([[3.0, 1.0], [1.0, 2.0]]))

        def forward(self, images: Tensor) -> Tensor:
            return images @ torch.linalg.inv(self.matrix)

    module = Inverse()
    with pytest.raises(RuntimeError):
        copy.deepcopy(module).half()(torch.ones(1, 2).half())

    (got,) = run_in_half(module, torch.ones(1, 2), "fp16")

    inverse = torch.linalg.inv(module.matrix.detach()).half()
    assert torch.equal(got, (torch.ones(1, 2).half() @ inverse).float())


def test_emulation_leaves_the_graph_as_it_is() -> None:
    module, batches = make("ResNet")
    model = exported(module, batches[0])
    to_half(model, precision="bf16", batches=batches)
    before = ir.to_proto(model).SerializeToString(deterministic=True)

    emulate(model)

    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
