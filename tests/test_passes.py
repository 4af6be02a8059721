"""Graph passes: each on real timm models of reduced depth, what it leaves behind, and that no number changes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from exporters import optimise, to_onnx
from exporters.float64 import run_in_float64
from exporters.gate import EPSILON
from exporters.parity import relative_rms
from exporters.passes.activations import fuse_gelu, fuse_silu
from exporters.passes.attention import fuse_attention
from exporters.passes.copies import drop_copies
from exporters.passes.layer_scale import fold_layer_scale
from exporters.passes.layout import cancel_transposes
from exporters.passes.normalisation import fuse_skip_normalisation
from exporters.passes.packed_attention import MOST_TOKENS, pack_attention
from exporters.passes.tokens import compute_read_token_only, pad_for_prefix_tokens
from runtime.errors import ExportError
from runtime.loud import draw_loud

DEPTH = 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": DEPTH}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"depth": DEPTH, "img_size": 112, "embed_dim": 96, "num_heads": 3}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {"depth": DEPTH, "img_size": 112, "embed_dim": 96, "num_heads": 3}),
    "rotary": ("eva02_tiny_patch14_224", {"depth": DEPTH}),
    "relative": ("beit_base_patch16_224", {"depth": DEPTH, "embed_dim": 96, "num_heads": 3}),
    "pooled": ("vit_base_patch16_siglip_224", {"depth": DEPTH, "embed_dim": 96, "num_heads": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    "convnext": ("convnext_atto", {}),
    "resnet": ("resnet18", {}),
}
VITS = ("vit", "registers", "swiglu", "rotary", "relative")
exported: dict[str, tuple[nn.Module, Any, Tensor]] = {}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
    exported.clear()


def export(name: str) -> tuple[nn.Module, ir.Model, Tensor]:
    """Return a loud model, a fresh copy of its exported graph, and three images."""
    if name not in exported:
        architecture, options = MODELS[name]
        module = timm.create_model(architecture, num_classes=0, **options).eval()
        draw_loud(module, 0)
        side = options.get("img_size", 224)
        images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
        exported[name] = (module, to_onnx.export(module, images[:2], ["embedding"], None), images)
    module, program, images = exported[name]
    return module, program.model.clone(), images


def run(model: ir.Model, images: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images.numpy()})[0])


def swept(model: ir.Model) -> ir.Model:
    optimise.RemoveUnusedNodesPass()(model)
    return model


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_an_optimised_graph_gives_the_numbers_of_eager(name: str, target: str) -> None:
    module, model, images = export(name)

    optimise.optimise(model, dynamic=False, target=target)

    got = run(model, images)
    with torch.no_grad():
        own = module(images).numpy()
    exact = run_in_float64(module, images)[0].numpy()
    assert relative_rms(own, got) < 5e-6
    assert relative_rms(exact, got) <= 2 * max(relative_rms(exact, own), EPSILON)


@pytest.mark.parametrize("name", VITS)
def test_every_block_has_one_attention_and_its_norms_take_the_residual(name: str) -> None:
    _, model, _ = export(name)

    applied = optimise.optimise(model, dynamic=False, target="cuda")

    assert applied["attention"] == kinds(model)["MultiHeadAttention"] == DEPTH
    assert applied["skip_normalisation"] >= 2 * DEPTH - 1
    assert not {"Softmax", "Erf", "Sigmoid", "Expand", "Attention"} & set(kinds(model))


def test_the_graph_of_a_vit_holds_nothing_else() -> None:
    _, model, _ = export("vit")

    optimise.optimise(model, dynamic=False, target="cuda")

    found = kinds(model)
    assert found["MatMul"] == 4 * DEPTH
    assert found["SkipLayerNormalization"] + found["LayerNormalization"] == 2 * DEPTH + 1
    assert not {"Shape", "Unsqueeze", "Concat", "Gather", "Cast"} & set(found)
    assert found["Transpose"] == found["Reshape"] == 1  # patches to tokens


def test_a_residual_norm_is_not_fused_for_cpus() -> None:
    _, model, _ = export("vit")

    optimise.optimise(model, dynamic=False, target="cpu")

    assert kinds(model)["SkipLayerNormalization"] == 0


@pytest.mark.parametrize("name", ["vit", "registers", "swiglu"])
def test_for_cpus_attention_and_its_packed_projection_are_one_operator(name: str) -> None:
    _, model, _ = export(name)

    applied = optimise.optimise(model, dynamic=False, target="cpu")

    of_one_token = applied.get("read_token", 0)  # the query of the last block is not that of all tokens
    found = kinds(model)
    assert found["Attention"] == applied["packed_attention"] == DEPTH - of_one_token
    assert found["MultiHeadAttention"] == found["Split"] - applied.get("silu", 0) == of_one_token


@pytest.mark.parametrize(("target", "precision"), [("cuda", "fp32"), ("cuda", "fp16"), ("cpu", "int8")])
def test_elsewhere_the_projection_stays_by_itself(target: str, precision: str) -> None:
    _, model, _ = export("vit")

    applied = optimise.optimise(model, dynamic=False, target=target, precision=precision)

    assert "packed_attention" not in applied
    assert kinds(model)["MultiHeadAttention"] == DEPTH


PACKED = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
  backbone (float[batch, {length}, 8] x) => (float[batch, {length}, 8] y)
  <float[8, 24] w = {{{weights}}}, float[24] b = {{{bias}}}, int64[3] parts = {{{parts}}},
   float[batch, {length}, 24] m, float[batch, {length}, 24] p, float[batch, {length}, 8] q,
   float[batch, {length}, 8] k, float[batch, {length}, 8] v, float[batch, {length}, 8] a>
  {{ m = MatMul(x, w) p = Add({sum}) q, k, v = Split <axis = 2> (p, parts)
     a = com.microsoft.MultiHeadAttention <num_heads = 2, scale = {scale}> ({read}) y = Neg({last}) }}"""


def packed(**other: Any) -> ir.Model:
    """Return a graph of two heads of 4 channels whose projection can be packed, but for what is given otherwise."""
    draw = np.random.default_rng(0)
    given = {"length": 5, "parts": "8, 8, 8", "sum": "m, b", "scale": 0.5, "read": "q, k, v", "last": "a"}
    given |= {"weights": ", ".join(map(str, draw.normal(size=8 * 24))), "bias": ", ".join(["0.1"] * 24)}
    model = ir.from_onnx_text(PACKED.format(**(given | other)))
    for value in model.graph.initializers.values():
        value.shape = value.const_value.shape  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("given", [{}, {"sum": "b, m"}, {"length": MOST_TOKENS}])
def test_a_packed_projection_joins_its_attention(given: dict[str, Any]) -> None:
    model = packed(**given)
    images = torch.randn(2, given.get("length", 5), 8, generator=torch.Generator().manual_seed(0))
    before = run_on(model, images)

    assert pack_attention(model) == 1

    swept(model)
    assert kinds(model) == {"Attention": 1, "Neg": 1}
    assert relative_rms(before, run_on(model, images)) < 1e-6


def run_on(model: ir.Model, tokens: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": tokens.numpy()})[0])


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"scale": 0.25}, id="OpenVINO would divide by the root of the width all the same"),
        pytest.param({"length": MOST_TOKENS + 1}, id="flash attention is faster"),
        pytest.param({"length": "n"}, id="of unknown length"),
        pytest.param({"read": "k, q, v"}, id="in another order"),
        pytest.param({"read": "q, q, v"}, id="not all parts"),
        pytest.param({"read": "q, k, v, b"}, id="with a bias of its own"),
        pytest.param({"last": "v"}, id="a part that is read elsewhere"),
    ],
)
def test_what_attention_cannot_say_stays(given: dict[str, Any]) -> None:
    assert pack_attention(packed(**given)) == 0


def test_an_attention_that_is_lost_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = export("vit")
    monkeypatch.setattr(optimise, "fuse_attention", lambda _: 0)

    with pytest.raises(ExportError, match="Of 2 calls of attention only 0 are one operator"):
        optimise.optimise(model, dynamic=False, target="cpu")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_convnext_reads_no_size_and_copies_nothing(target: str) -> None:
    _, model, _ = export("convnext")

    applied = optimise.optimise(model, dynamic=False, target=target)

    assert applied["copies"] == 1
    assert not {"Shape", "Squeeze", "Unsqueeze", "Range", "Gather"} & set(kinds(model))


def test_values_gathered_as_they_lie_are_the_same_bits() -> None:
    _, model, images = export("convnext")
    before = run(swept(model), images)

    assert drop_copies(model) == 1

    np.testing.assert_array_equal(before, run(swept(model), images))


GATHERED = """<ir_version: 10, opset_import: ["" : 18]>
  backbone (float[batch, 3] x) => (float[batch, 3] y)
  <int64[1] all = {{-1}}, int64[1] axes = {{1}}, int64 zero = {{0}}, int64 one = {{1}}, int64 stride = {{{stride}}},
   int64[1, 3] within = {{{within}}}, int64[batch] rows, int64[batch] starts, int64[batch, 1] column,
   int64[batch, 3] places, float[batch, 3] z>
  {{ flat = Reshape(x, all) s = Shape <start = 0, end = 1> (x) n = Squeeze(s) rows = Range(zero, n, one)
     starts = Mul(rows, stride) column = Unsqueeze(starts, axes) places = Add(column, within)
     z = Gather(flat, places) y = Neg(z) }}"""


@pytest.mark.parametrize(
    ("stride", "within", "dropped"), [(3, "0, 1, 2", 1), (3, "0, 2, 1", 0), (1, "0, 1, 2", 0), (3, "1, 1, 2", 0)]
)
def test_values_gathered_in_another_order_stay_so(stride: int, within: str, dropped: int) -> None:
    model = ir.from_onnx_text(GATHERED.format(stride=stride, within=within))

    assert drop_copies(model) == dropped


def test_a_packed_projection_is_split_without_moving_it() -> None:
    _, model, images = export("vit")
    before = run_plain("vit", images)

    assert fuse_attention(model) == DEPTH
    optimise._until_none(model, cancel_transposes)

    assert kinds(model)["Split"] == DEPTH
    assert kinds(model)["Transpose"] == 1
    assert relative_rms(before, run(model, images)) < 1e-6


def run_plain(name: str, images: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(exported[name][0](images).numpy())


def test_prefix_tokens_change_no_bit() -> None:
    _, model, images = export("registers")
    fuse_attention(model)
    before = run(swept(model), images)

    assert pad_for_prefix_tokens(model) == 1

    swept(model)
    assert kinds(model)["Concat"] == kinds(model)["Expand"] == 0
    np.testing.assert_array_equal(before, run(model, images))


def test_the_last_block_is_computed_for_the_class_token_alone() -> None:
    _, model, _ = export("vit")
    optimise.optimise(model, dynamic=False, target="cpu")

    lengths = [n.outputs[0].shape[1] for n in model.graph if n.op_type == "BiasGelu" and n.outputs[0].shape]

    assert lengths == [197] * (DEPTH - 1) + [1]


def test_tokens_that_are_averaged_are_all_computed() -> None:
    _, model, _ = export("relative")  # BEiT averages its patches

    assert "read_token" not in optimise.optimise(model, dynamic=False, target="cpu")


def test_a_layer_scale_is_folded_into_the_projection_before_it() -> None:
    _, model, images = export("registers")
    fuse_attention(model)
    before = run(swept(model), images)
    scaled = kinds(model)["Mul"]

    assert fold_layer_scale(model) == 2 * DEPTH

    swept(model)
    assert kinds(model)["Mul"] == scaled - 2 * DEPTH
    assert relative_rms(before, run(model, images)) < 1e-6


def test_a_layer_scale_too_small_for_float16_stays() -> None:
    module, _, images = export("registers")
    gammas = [p for name, p in module.named_parameters() if name.endswith("gamma")]
    kept = [p.detach().clone() for p in gammas]
    try:
        with torch.no_grad():
            for p in gammas:
                p.fill_(1e-6)
        model = to_onnx.export(module, images[:2], ["embedding"], None).model

        assert fold_layer_scale(model) == 0
    finally:
        with torch.no_grad():
            for p, old in zip(gammas, kept, strict=True):
                p.copy_(old)


def test_float32_weights_stay_as_they_are() -> None:
    _, model, _ = export("registers")
    before = {name for name, value in model.graph.initializers.items() if value.const_value.nbytes > 60_000}

    optimise.optimise(model, dynamic=False, target="cuda")

    assert {n for n, v in model.graph.initializers.items() if v.const_value.nbytes > 60_000} <= before


@pytest.mark.parametrize(
    "apply",
    [
        fuse_attention,
        cancel_transposes,
        drop_copies,
        fuse_gelu,
        fuse_silu,
        fuse_skip_normalisation,
        pad_for_prefix_tokens,
        compute_read_token_only,
        fold_layer_scale,
        pack_attention,
    ],
)
def test_a_pass_leaves_a_graph_without_its_pattern_alone(apply: Any) -> None:
    _, model, _ = export("resnet")
    before = ir.to_proto(model).SerializeToString(deterministic=True)

    assert apply(model) == 0

    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_height_and_width_that_vary_keep_their_attention_whole() -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=DEPTH, dynamic_img_size=True).eval()
    draw_loud(module, 0)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = to_onnx.export(module, images, ["embedding"], 16).model

    applied = optimise.optimise(model, dynamic=True, target="cuda")

    assert applied["attention"] == DEPTH
    other = torch.randn(3, 3, 96, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative_rms(module(other).numpy(), run(model, other)) < 5e-6
