"""Attention that is written out is counted, and fails the build of a Vision Transformer."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import small_architectures as small
import timm
import torch
from conftest import request_for
from timm import layers

from exporters import pipeline, to_onnx
from exporters.images import Images
from exporters.plan import Job
from exporters.written_attention import fused_attention, written_out
from runtime.errors import ExportError
from runtime.manifest import Form

NAME = "test/tiny_vit"


@pytest.fixture
def unfused() -> Iterator[None]:
    """What TIMM_FUSED_ATTN=0 does to a process that imports timm."""
    layers.set_fused_attn(False)
    yield
    layers.set_fused_attn(True)


def export(module: torch.nn.Module) -> ir.Model:
    return to_onnx.export(module, small.images(2), ["output"], None).model


def test_an_environment_variable_changes_no_graph(unfused: None, tmp_path: Path, built: Path) -> None:
    job = Job(request_for(NAME, weights="random", artifacts=str(tmp_path)), (Form("onnx"),))

    [outcome] = pipeline.build(job)

    assert outcome.status == "built", outcome.note
    assert graph(tmp_path) == graph(built)
    assert not layers.use_fused_attn(), "the setting of the process was not put back"


def graph(root: Path) -> dict[str, object]:
    artifacts = json.loads((root / NAME / "manifest.json").read_text())["artifacts"]
    return next(a for a in artifacts if a["key"]["format"] == "onnx" and a["key"]["out_indices"] is None)["files"][0]


def test_timm_reads_the_variable_that_the_fixture_stands_for() -> None:
    code = "from timm.layers import use_fused_attn; raise SystemExit(use_fused_attn())"

    assert subprocess.call([sys.executable, "-c", code], env=os.environ | {"TIMM_FUSED_ATTN": "0"}) == 0
    assert layers.use_fused_attn()


@pytest.mark.parametrize("on", [(False, False), (True, False), (True, True)])
def test_the_setting_of_timm_is_put_back(on: tuple[bool, bool]) -> None:
    layers.set_fused_attn(*on)
    try:
        with fused_attention():
            assert layers.use_fused_attn()
            assert not layers.use_fused_attn(experimental=True)
        assert (layers.use_fused_attn(), layers.use_fused_attn(experimental=True)) == on
    finally:
        layers.set_fused_attn(True)


@pytest.mark.parametrize("name", ["plain ViT", "LayerScale, registers and SwiGLU"])
def test_a_vit_whose_attention_is_written_out_fails(name: str) -> None:
    module = small.make(name)
    for block in module.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False  # type: ignore[union-attr]

    with pytest.raises(ExportError, match=r"Of the attention of 2 blocks only 0 .* 2 times it is written out .*sdpa"):
        export(module)


def test_a_single_block_that_does_not_fuse_fails_it() -> None:
    module = small.make("plain ViT")
    module.blocks[1].attn.fused_attn = False  # type: ignore[index, union-attr]

    with pytest.raises(ExportError, match=r"Of the attention of 2 blocks only 1 can become one operator; 1 times"):
        export(module)


def test_a_model_of_transformers_with_its_eager_attention_fails() -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56)
    module = Dinov2Model._from_config(config, attn_implementation="eager").eval()

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images).last_hidden_state[:, 0]

    with pytest.raises(ExportError, match=r"Of the attention of 2 blocks only 0"):
        to_onnx.export(Embedding(), torch.randn(2, 3, 56, 56), ["output"], None)


def test_swin_may_write_its_attention_out_and_the_manifest_tells_so() -> None:
    module = small.make("Swin")
    program = to_onnx.export(module, small.images(2), ["output"], None)

    assert written_out(program.model) == 4
    images = Images(request_for("universal/vit_tiny_patch16_224_random"), None)
    assert to_onnx.derive(program, Form("onnx"), images)[1]["attention_written_out"] == 4


def test_a_fused_vit_has_nothing_written_out() -> None:
    assert written_out(export(small.make("plain ViT"))) == 0


def test_a_softmax_that_weighs_channels_is_no_attention() -> None:
    module = timm.create_model("skresnet18", num_classes=0).eval()

    assert written_out(export(module)) == 0


def masked_scores(repeats: int) -> ir.Model:
    """Attention whose scores are added to themselves, and its weights reshaped to their own shape, again and again."""
    nodes: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value | None) -> ir.Value:
        nodes.append(ir.node(op_type, inputs))
        return nodes[-1].outputs[0]

    query, key, mask = (ir.val(name, ir.DataType.FLOAT, [4, 4]) for name in ("query", "key", "mask"))
    scores = add("MatMul", query, key)
    for _ in range(repeats):
        scores = add("Add", scores, scores)
    weights = add("Softmax", scores)
    for _ in range(repeats):
        weights = add("Expand", weights, add("Identity", weights))
    other = mask
    for _ in range(repeats):
        other = add("Add", other, other)
    outputs = [add("MatMul", weights, key), add("Softmax", other)]
    graph = ir.Graph([query, key, mask], outputs, nodes=nodes, opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def test_branches_that_meet_again_and_long_chains_are_counted_at_once() -> None:
    assert written_out(masked_scores(5000)) == 1
