"""Every call of scaled_dot_product_attention reaches the graph as one node, however a library spells it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters import optimise, to_onnx
from exporters.parity import relative_rms
from exporters.passes.activations import fuse_silu
from exporters.passes.registers import pad_for_registers
from runtime.errors import ExportError
from runtime.loud import draw_loud
from runtime.transformers_modules import TokenEmbedding
from runtime.transformers_outputs import Pooled


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Attention of 24 tokens in 3 heads of 4 channels, twice, with what else is passed to the calls."""

    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.register_buffer("mask", mask)
        self.options = options

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.qkv(images.flatten(2).reshape(images.shape[0], 24, 12))
        query, key, value = tokens.reshape(images.shape[0], 24, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        once = F.scaled_dot_product_attention(query, key, value, self.mask, **self.options)
        return F.scaled_dot_product_attention(query, key, once, self.mask, **self.options).flatten(1)


def optimised(module: nn.Module, images: Tensor, dynamic: bool = False) -> tuple[np.ndarray[Any, Any], Counter[str]]:
    """Return what the graph for GPUs gives, and the kinds of its nodes."""
    draw_loud(module.eval(), 0)
    model = to_onnx.export(module, images[:2], ["output"], None).model
    optimise.optimise(model, dynamic=dynamic, target="cuda")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0], Counter(node.op_type for node in model.graph)


def assert_equal_to_eager(module: nn.Module, images: Tensor, got: np.ndarray[Any, Any]) -> None:
    with torch.no_grad():
        expected = module(images).numpy()
    assert np.isfinite(got).all()
    assert relative_rms(expected, got) < 2e-6


@pytest.mark.parametrize(
    "mask",
    [noise(24, 24) > -1, noise(24, 24), noise(3, 1, 24), noise(1, 1, 1, 24) > -1, noise(1, 3, 24, 24)],
    ids=["boolean", "added", "per head", "of keys", "full"],
)
def test_a_mask_becomes_the_bias_of_every_attention(mask: Tensor) -> None:
    module, images = Masked(mask), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 2
    assert kinds["Softmax"] == 0
    assert kinds["Where"] <= 1
    assert_equal_to_eager(module, images, got)


def test_a_mask_that_lets_everything_pass_leaves_nothing_behind() -> None:
    module, images = Masked(torch.ones(1, 1, 24, 1, dtype=torch.bool)), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 2
    assert not {"Where", "Expand", "And"} & set(kinds)
    assert_equal_to_eager(module, images, got)


def test_a_causal_attention_stays_as_torch_writes_it() -> None:
    module, images = Masked(is_causal=True), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 0
    assert_equal_to_eager(module, images, got)


class Pooling(nn.Module):
    """One learned query over all tokens, which torch broadcasts over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 3, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.reshape(images.shape[0], 3, -1, 4)
        return F.scaled_dot_product_attention(self.query, tokens, tokens).flatten(1)


def test_a_query_that_torch_broadcasts_stays_as_torch_writes_it() -> None:
    module, images = Pooling(), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 0
    assert_equal_to_eager(module, images, got)


class Torchs(nn.Module):
    """torch's own attention layer, which calls the function where a mode does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.reshape(images.shape[0], 24, 12)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


def test_torchs_own_attention_layer_has_one_attention() -> None:
    module, images = Torchs(), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 1
    assert_equal_to_eager(module, images, got)


@pytest.mark.parametrize("between", [(), (2, 2)], ids=["three dimensions", "five dimensions"])
def test_attention_of_other_ranks_is_one_operator_too(between: tuple[int, ...]) -> None:
    class Grouped(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.reshape(images.shape[0], *between, -1, 12)
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)

    module, images = Grouped(), noise(5, 3, 12, 8)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 1
    assert_equal_to_eager(module, images, got)


def test_a_call_that_the_exporter_was_not_shown_fails_the_export() -> None:
    class Hidden(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.reshape(images.shape[0], 3, -1, 4)
            return torch.ops.aten.scaled_dot_product_attention.default(tokens, tokens, tokens).flatten(1)

    with pytest.raises(ExportError, match="1 calls of scaled_dot_product_attention were exported without being seen"):
        to_onnx.export(Hidden(), noise(2, 3, 12, 8), ["output"], None)


SMALL = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 112}


def dinov2() -> nn.Module:
    """As the library runs it, which passes a mask that hides nothing."""
    from transformers import Dinov2Config, Dinov2Model

    return Pooled(Dinov2Model(Dinov2Config(**SMALL)), "cls", 14)


def hibou() -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return TokenEmbedding(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL)), (112, 112))


@pytest.mark.parametrize("build", [dinov2, hibou])
def test_models_of_transformers_hold_nothing_but_their_blocks(build: Any) -> None:
    module, images = build(), noise(3, 3, 112, 112)

    got, kinds = optimised(module, images)

    assert kinds["MultiHeadAttention"] == 2
    assert kinds["SkipLayerNormalization"] + kinds["LayerNormalization"] == 5
    assert kinds["Reshape"] == kinds["Transpose"] == kinds["Pad"] == 1  # patches to tokens
    assert not {"Shape", "Concat", "Expand", "Where", "Softmax"} & set(kinds)
    assert_equal_to_eager(module, images, got)


def test_registers_change_no_bit() -> None:
    module, images = hibou(), noise(3, 3, 112, 112)
    draw_loud(module.eval(), 0)
    model = to_onnx.export(module, images[:2], ["output"], None).model
    before = model.clone()
    optimise.optimise(model, dynamic=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimise, "pad_for_registers", lambda _: 0)
        optimise.optimise(before, dynamic=False)

    first, second = (_run(m, images) for m in (before, model))

    np.testing.assert_array_equal(first, second)
    assert pad_for_registers(before) == 1
    assert pad_for_registers(model) == 0


def _run(model: ir.Model, images: Tensor) -> Any:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def test_the_quick_gelu_of_clip_is_one_operator() -> None:
    module = timm.create_model("vit_base_patch32_clip_quickgelu_224", depth=2, embed_dim=96, num_heads=3, num_classes=0)
    images = noise(3, 3, 224, 224)

    got, kinds = optimised(module, images)

    assert kinds["QuickGelu"] == 2
    assert kinds["Sigmoid"] == 0
    assert_equal_to_eager(module, images, got)


def test_a_gate_of_something_else_is_not_taken_for_a_silu() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
      backbone (float[batch, 3] x, float[batch, 3] z) => (float[batch, 3] y) { s = Sigmoid(z) y = Mul(x, s) }"""
    model = ir.from_onnx_text(text)

    assert fuse_silu(model) == 0
    assert [node.op_type for node in model.graph] == ["Sigmoid", "Mul"]
