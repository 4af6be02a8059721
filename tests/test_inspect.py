"""`python -m exporters.inspect`: what is in an artifact, as onnx and torch themselves see it."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import request_for
from stores import NAME, graph_of, published
from terminal import run

from exporters import contents, inspect, pipeline
from exporters.plan import Job
from runtime import load_model
from runtime.artifacts import Store
from runtime.manifest import Form

CUDA_HALF = Form("onnx", "cuda", "fp16")


@pytest.fixture(scope="module")
def store(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The shared store, and one more artifact: the embedding in fp16 for CUDA."""
    root = Path(shutil.copytree(built, tmp_path_factory.mktemp("store") / "artifacts"))
    request = request_for(NAME, weights="random", artifacts=str(root))
    [outcome] = pipeline.build(Job(request, (CUDA_HALF,)))
    assert outcome.status == "built", outcome
    return Store(root)


def told(store: Store, graph: str) -> dict[str, Any]:
    ran = run(inspect.main, NAME, "--graph", graph, "--artifacts", store.root, "--json")
    assert ran.status == 0, ran.err
    [line] = ran.lines
    return dict(line)


def test_an_onnx_graph_is_told_as_onnx_sees_it(store: Store) -> None:
    graph = graph_of(store, "onnx")
    model = onnx.load(graph)
    said = told(store, graph.name)

    assert sum(said["nodes"].values()) == len(model.graph.node)
    assert said["nodes"]["MatMul"] == sum(node.op_type == "MatMul" for node in model.graph.node)
    assert said["nodes"]["com.microsoft::Attention"] == said["fused"]["Attention"] == 2
    assert said["nodes"]["com.microsoft::MultiHeadAttention"] == said["fused"]["MultiHeadAttention"] == 1
    assert said["passes"]["attention"] == 3
    assert said["opsets"] == {"ai.onnx": 18, "com.microsoft": 1}
    assert said["metadata"]["model"] == NAME
    assert (said["inputs"][0]["shape"], said["outputs"][0]["shape"]) == (["batch", 3, 32, 32], ["batch", 48])
    assert said["half"] is None
    weights = {weight["name"]: weight for weight in said["weights"]}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: (w["bytes"], tuple(w["shape"])) for name, w in weights.items()} == {
        name: (array.nbytes, array.shape) for name, array in arrays.items()
    }


def test_every_tensor_lies_where_the_table_says(store: Store) -> None:
    graph = graph_of(store, "onnx")
    tensors = {tensor.name: tensor for tensor in onnx.load(graph).graph.initializer}
    stored = [weight for weight in told(store, graph.name)["weights"] if weight["file"]]

    assert len(stored) > 10
    for weight in stored:
        data = (graph.parent / weight["file"]).read_bytes()[weight["offset"] :][: weight["bytes"]]
        assert data == onnx.numpy_helper.to_array(tensors[weight["name"]]).tobytes()


def test_islands_of_float32_are_told(store: Store) -> None:
    [artifact] = [a for a in store.read(NAME).artifacts if a.key.form == CUDA_HALF]
    said = told(store, artifact.graph.name)
    shown = run(inspect.main, NAME, "--graph", "*.fp16.*", "--artifacts", store.root).out

    assert said["half"] == artifact.facts["half"]
    assert said["half"]["precision"] == "fp16"
    assert {weight["dtype"] for weight in said["weights"]} >= {"float16"}
    assert f"  half      {said['half']['nodes']} nodes in fp16, in float32: " in shown


def test_torchscript_tells_its_calls_and_its_weights(store: Store) -> None:
    said = told(store, graph_of(store, "torchscript").name)

    with load_model(NAME, backend="torchscript", weights="random", artifacts=store.root) as model:
        tensors = dict([*model.module.named_parameters(), *model.module.named_buffers()])
    assert said["nodes"]["scaled_dot_product_attention"] == 3
    assert {w["name"]: tuple(w["shape"]) for w in said["weights"]} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert sum(w["bytes"] for w in said["weights"]) == sum(
        t.nbytes for t in tensors.values() if t.dtype == torch.float32
    )


def test_a_lone_file_tells_about_itself(store: Store, tmp_path: Path) -> None:
    lone = tmp_path / "lone.onnx"
    shutil.copy(graph_of(store, "onnx"), lone)

    ran = run(inspect.main, lone)

    assert ran.status == 0
    assert f"  metadata  model: {NAME}" in ran.out
    assert "  fused     BiasGelu 3, Attention 2, MultiHeadAttention 1" in ran.out


def test_every_artifact_of_a_model_is_shown_and_tensors_on_request(store: Store) -> None:
    short = run(inspect.main, NAME, "--artifacts", store.root)
    long = run(inspect.main, NAME, "--artifacts", store.root, "--weights")

    heads = [line for line in short.out.splitlines() if line.startswith(f"{NAME}: ")]
    assert heads == [f"{NAME}: {artifact.key.describe()}" for artifact in store.read(NAME).artifacts]
    assert "TENSOR" not in short.out
    assert long.out.count("TENSOR") == len(heads)


def test_a_damaged_graph_is_an_error_and_the_others_are_shown(store: Store, tmp_path: Path) -> None:
    copy = Store(Path(shutil.copytree(store.root, tmp_path / "copy")))
    graph = graph_of(copy, "onnx")
    graph.write_bytes(b"\xff" * graph.stat().st_size)

    ran = run(inspect.main, NAME, "--artifacts", copy.root, "--json")

    assert ran.status == 1
    assert f"{graph} cannot be read as onnx: DecodeError" in ran.err
    assert "python -m exporters.verify --hash" in ran.err
    assert len(ran.lines) == len(copy.read(NAME).artifacts) - 1


def test_what_lies_outside_the_files_size_is_refused_first(store: Store, tmp_path: Path) -> None:
    copy = Store(Path(shutil.copytree(store.root, tmp_path / "copy")))
    graph_of(copy, "torchscript").write_bytes(b"")

    ran = run(inspect.main, NAME, "--graph", published(copy, "torchscript").graph.name, "--artifacts", copy.root)

    assert (ran.status, ran.out) == (1, "")
    assert "has 0 bytes, the manifest says" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["test/none"], "Nothing is published as 'test/none'"),
        ([NAME, "--graph", "*.fp64.*"], f"{NAME} has no graph '*.fp64.*'; it has maps_2.cpu.fp32."),
        (["missing.onnx"], "Nothing is published as 'missing.onnx'"),
    ],
)
def test_a_name_of_nothing_is_wrong_usage(arguments: list[str], says: str, store: Store) -> None:
    ran = run(inspect.main, *arguments, "--artifacts", store.root)

    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err


def test_nodes_inside_of_others_are_counted() -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "inner", [], [])
    nodes = [onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "outer", [], []))

    assert sorted(node.op_type for node in contents._nodes(model)) == ["If", "Relu", "Relu"]
