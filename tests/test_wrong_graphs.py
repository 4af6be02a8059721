"""A graph that is not the eager backbone's is refused, and the report says where it went wrong."""

from pathlib import Path

import onnx_ir as ir
import pytest
from conftest import request_for

from exporters import diverge, optimise, pipeline, to_onnx
from exporters.plan import Job, Outcome
from runtime.errors import ExportError
from runtime.manifest import Form


def _wrong_epsilon(model: ir.Model) -> None:
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    norms[2].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)  # the first norm of the second block


def _wrong_weight(model: ir.Model) -> None:
    value = model.graph.initializers["body.weight"]
    assert value.const_value is not None
    value.const_value = ir.tensor(1.001 * value.const_value.numpy())


def _frozen_batch(model: ir.Model) -> None:
    # What a reshape with the traced batch in it would leave behind; the output's own shape does not tell.
    (output,) = model.graph.outputs
    producer = output.producer()
    assert producer is not None
    shape = ir.tensor([2, 16], dtype=ir.DataType.INT64, name="shape")
    constant = ir.val("shape", const_value=shape)
    model.graph.register_initializer(constant)
    frozen = ir.node("Reshape", [output, constant])
    model.graph.append(frozen)
    frozen.outputs[0].name, frozen.outputs[0].shape, frozen.outputs[0].type = "frozen", output.shape, output.type
    model.graph.outputs[0] = frozen.outputs[0]


def _build_damaged(name: str, damage: object, root: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    def then_damage(model: ir.Model, *, dynamic: bool, target: str, precision: str) -> dict[str, int]:
        applied = optimise.optimise(model, dynamic=dynamic, target=target, precision=precision)
        damage(model)  # type: ignore[operator]
        return applied

    monkeypatch.setattr(to_onnx, "optimise", then_damage)
    [outcome] = pipeline.build(Job(request_for(name, weights="random", artifacts=str(root)), (Form("onnx"),)))
    return outcome


@pytest.mark.parametrize(
    ("name", "damage", "where"),
    [
        ("test/tiny_vit", _wrong_epsilon, "node_layer_norm_2 (LayerNormalization)"),
        ("test/two_stages", _wrong_weight, "node_conv2d_1 (Conv)"),
    ],
)
def test_a_wrong_graph_is_not_published_and_the_report_says_where_it_went_wrong(
    name: str, damage: object, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = _build_damaged(name, damage, tmp_path, monkeypatch)

    assert outcome.status == "failed"
    assert outcome.relative_rms is not None
    assert outcome.note.startswith(f"embedding: relative RMS {outcome.relative_rms:.3g} > 1e-05")
    assert outcome.note.endswith(f" First diverging node: {where}. Nothing was published")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_a_graph_that_only_runs_at_the_traced_batch_fails_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = _build_damaged("test/two_stages", _frozen_batch, tmp_path, monkeypatch)

    assert outcome.status == "failed"
    assert "the artifact does not run on a batch [1, 3, 32, 32]: " in outcome.note
    assert outcome.note.endswith("Nothing was published")


def test_a_search_for_the_node_that_fails_does_not_hide_what_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(diverge, "first_diverging_node", broken)

    outcome = _build_damaged("test/two_stages", _wrong_weight, tmp_path, monkeypatch)

    assert outcome.status == "failed"
    assert "relative RMS" in outcome.note
    assert "RuntimeError: out of luck" in outcome.note


def _parsed(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')


def test_a_graph_whose_batch_became_static_is_refused() -> None:
    for text in ("(float[batch, 3] x) => (float[2, 3] y)", "(float[2, 3] x) => (float[batch, 3] y)"):
        with pytest.raises(ExportError, match="batch dimension became static"):
            optimise.optimise(_parsed(f"backbone {text} {{ y = Neg(x) }}"), dynamic=True)


def test_a_resized_constant_is_refused_at_a_fixed_image_size_only() -> None:
    text = """backbone (float[batch, 3, 8, 8] x) => (float[batch, 3, 8, 8] y)
      <float[4] scales = {{1, 1, 2, 2}}, float[1, 3, 4, 4] grid>
      {{ z = Neg({}) r = Resize(z, , scales) y = Add(r, x) }}"""

    optimise.optimise(_parsed(text.format("grid")), dynamic=True)
    optimise.optimise(_parsed(text.format("x")), dynamic=False)

    with pytest.raises(ExportError, match="still holds Resize"):
        optimise.optimise(_parsed(text.format("grid")), dynamic=False)


def test_a_constant_resized_bicubically_becomes_matrix_products_and_leaves_nothing_behind() -> None:
    text = """backbone (float[batch, 1, 4, 4] x) => (float[batch, 1, 4, 4] y)
      <float[1, 1, 2, 2] table = {1, 2, 3, 4}, float[4] scales = {1, 1, 2, 2}, float[1, 1, 4, 4] larger>
      { larger = Resize <mode = "cubic"> (table, , scales) y = Add(x, larger) }"""
    model = _parsed(text)

    optimise.optimise(model, dynamic=False)

    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "Add"]
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert set(model.graph.initializers) <= used


def test_traces_are_dropped_and_reported_once() -> None:
    model = _parsed("backbone (float[batch, 3] x) => (float[batch, 3] y) { y = Neg(x) }")
    node = model.graph.node(0)
    for item in (model, model.graph, model.graph.inputs[0], node, node.outputs[0]):
        item.metadata_props["pkg.torch.onnx.stack_trace"] = "File ..."
        item.doc_string = "traced in ..."

    assert optimise.drop_traces(model)
    assert not optimise.drop_traces(model)
    assert b"trace" not in ir.to_proto(model).SerializeToString()
