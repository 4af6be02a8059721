"""What a build publishes: the eager numbers, in graphs that keep their contract and tell nothing about the builder."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import FORMATS, FORMS, request_for

from exporters import pipeline, to_onnx
from exporters.gate import LIMITS
from exporters.parity import relative_rms
from exporters.plan import Job
from runtime import load_model
from runtime.artifacts import MANIFEST, Store
from runtime.errors import ArtifactNotFoundError, VerificationError
from runtime.manifest import Form

RANDOM = {"weights": "random"}


def build(name: str, root: Path, forms: tuple[Form, ...] = FORMS, **options: Any) -> Path:
    outcomes = pipeline.build(Job(request_for(name, artifacts=str(root), **options), forms))
    assert [o.status for o in outcomes] == ["built"] * len(forms), outcomes
    return root


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def assert_served_as_eager(name: str, root: Path, format: str, images: np.ndarray, **options: Any) -> list[np.ndarray]:
    served = load_model(name, backend=format, artifacts=root, on_fallback="error", **options)(images)
    eager = load_model(name, backend="eager", **options)(images)
    got, expected = ([o] if isinstance(o, np.ndarray) else o for o in (served, eager))
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert relative_rms(e, g) < LIMITS["fp32", 2].relative_rms
    return got


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dynamic")
    return build("test/tiny_vit", root, **RANDOM, image_size="dynamic", out_indices=2)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of 32 x 32 pixels, built for another, fixed size."""
    return build("test/tiny_vit", tmp_path_factory.mktemp("elsewhere"), (Form("onnx"),), **RANDOM, image_size=(24, 48))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("test/own", tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("test/tiny_tokens", tmp_path_factory.mktemp("tokens"), **RANDOM, include_patch_tokens=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("out_indices", [None, 2])
def test_embedding_and_maps_are_the_eager_ones(built: Path, format: str, out_indices: int | None) -> None:
    outputs = assert_served_as_eager(
        "test/tiny_vit", built, format, batch(5, 3, 32, 32), out_indices=out_indices, **RANDOM
    )

    assert [o.shape for o in outputs] == ([(5, 48)] if out_indices is None else [(5, 48, 4, 4)] * 2)


def test_the_manifest_tells_how_near_every_output_came(built: Path) -> None:
    limits = LIMITS["fp32", 2]

    for artifact in Store(built).read("test/tiny_vit").artifacts:
        parity = artifact.facts["parity"]
        assert parity["batches"] == [1, 3, 8]
        assert parity["image_sizes"] == [[32, 32]]
        assert [o["name"] for o in parity["outputs"]] == [o.name for o in artifact.outputs]
        for output in parity["outputs"]:
            assert 0 <= output["relative_rms"] <= limits.relative_rms
            assert min(output["min_cosine"], output["min_token_cosine"]) >= limits.cosine
            assert 0 < output["float64_error"]["eager"] < 1e-6  # float32 is not float64
            assert output["float64_error"]["artifact"] <= 2.4e-7 + 2 * output["float64_error"]["eager"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_backbones_own_option_is_built_in(tokens: Path, format: str) -> None:
    images = batch(2, 3, 32, 32)

    [both] = assert_served_as_eager("test/tiny_tokens", tokens, format, images, include_patch_tokens=True, **RANDOM)

    assert both.shape == (2, 96)
    with pytest.raises(ArtifactNotFoundError, match="include_patch_tokens=True"):
        load_model("test/tiny_tokens", backend=format, artifacts=tokens, on_fallback="error", **RANDOM)


@pytest.mark.parametrize("format", FORMATS)
def test_a_function_without_any_facts_is_enough(own: Path, format: str) -> None:
    [embedding] = assert_served_as_eager("test/own", own, format, batch(3, 3, 32, 32))

    assert embedding.shape == (3, 5)
    [artifact] = [a for a in Store(own).read("test/own").artifacts if a.key.format == format]
    assert artifact.facts["source"] == {"gated": False, "id": None, "licence": None, "revision": None}
    assert artifact.key.weights == "pretrained"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (40, 24), (24, 88)])
def test_a_dynamic_artifact_serves_every_size(dynamic: Path, format: str, size: tuple[int, int]) -> None:
    outputs = assert_served_as_eager(
        "test/tiny_vit", dynamic, format, batch(3, 3, *size), **RANDOM, image_size="dynamic", out_indices=2
    )

    assert [o.shape for o in outputs] == [(3, 48, size[0] // 8, size[1] // 8)] * 2


def test_a_dynamic_artifact_is_verified_at_sizes_the_export_did_not_see(dynamic: Path) -> None:
    for artifact in Store(dynamic).read("test/tiny_vit").artifacts:
        assert artifact.facts["parity"]["image_sizes"] == [[32, 32], [16, 56], [40, 24]]
        assert [t.shape for t in artifact.inputs] == [("batch", 3, "8*h", "8*w")]
        assert [t.shape for t in artifact.outputs] == [("batch", 48, "h", "w")] * 2


def test_a_fixed_size_has_its_position_embedding_baked_in(elsewhere: Path, dynamic: Path) -> None:
    options = {**RANDOM, "image_size": (24, 48)}

    assert_served_as_eager("test/tiny_vit", elsewhere, "onnx", batch(2, 3, 24, 48), **options)

    [fixed], [resizing] = _graphs(elsewhere), _graphs(dynamic)
    assert "Resize" not in {node.op_type for node in fixed.graph.node}
    assert "Resize" in {node.op_type for node in resizing.graph.node}
    assert _shape(fixed.graph.input[0]) == ["batch", 3, 24, 48]


def _graphs(root: Path) -> list[onnx.ModelProto]:
    return [onnx.load(path) for path in sorted(root.rglob("*.onnx"))]


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_graphs_keep_the_declared_contract(built: Path, dynamic: Path, own: Path) -> None:
    graphs = [*_graphs(built), *_graphs(dynamic), *_graphs(own)]

    assert len(graphs) == 4
    for model in graphs:
        assert model.ir_version == 10
        fused = any(node.op_type in ("Attention", "MultiHeadAttention") for node in model.graph.node)
        assert fused == (model not in _graphs(own))
        operators = [("", to_onnx.OPSET), ("com.microsoft", 1)] if fused else [("", to_onnx.OPSET)]
        assert [(o.domain, o.version) for o in model.opset_import] == operators
        assert to_onnx.OPSET == 18
        assert [i.name for i in model.graph.input] == ["images"]
        for value in (*model.graph.input, *model.graph.output):
            assert _shape(value)[0] == "batch"
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("fixture", "name", "licence", "source", "mean"),
    [
        ("built", "test/tiny_vit", "Apache-2.0", "http://127.0.0.1:9/tiny.pth", [0.5, 0.5, 0.5]),
        ("own", "test/own", "not stated", "the registered function", None),
    ],
)
def test_a_lone_graph_tells_what_it_is(
    fixture: str, name: str, licence: str, source: str, mean: object, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(fixture)
    keys = [a.key for a in Store(root).read(name).artifacts if a.key.format == "onnx"]

    told = [{p.key: p.value for p in model.metadata_props} for model in _graphs(root)]

    assert sorted(t["artifact"] for t in told) == sorted(key.describe() for key in keys)
    for t in told:
        assert (t["model"], t["licence"], t["source"]) == (name, licence, source)
        assert json.loads(t["key"]) in [key.to_json() for key in keys]
        assert json.loads(t["preprocessing"])["mean"] == mean


def test_random_weights_say_so_and_are_never_served_as_pretrained(built: Path) -> None:
    manifest = json.loads((built / "test/tiny_vit" / MANIFEST).read_text())

    assert {a["key"]["weights"] for a in manifest["artifacts"]} == {"random:0"}
    for options in ({}, {"weights": "random", "seed": 1}):
        with pytest.raises(
            ArtifactNotFoundError, match=r"Built: [^.]*embedding, onnx for cpu, fp32, 32x32, random:0 weights\."
        ):
            load_model("test/tiny_vit", backend="onnx", artifacts=built, on_fallback="error", **options)


def test_weights_with_a_nan_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="embedding of the eager backbone itself: 1 of 5 values are not finite"):
        pipeline.build(Job(request_for("test/nan", artifacts=str(tmp_path)), FORMS))

    assert sorted(p.name for p in tmp_path.rglob("*")) == [".locks", ".staging", "test--nan.lock"]


@pytest.mark.parametrize("fixture", ["built", "dynamic", "own", "tokens"])
def test_published_files_tell_nothing_about_the_machine(fixture: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(fixture)
    here, torch_folder = Path(pipeline.__file__).parents[1], Path(torch.__file__).parents[1]
    telltales = [b"site-packages", b'.py"', b'File "', b"stack_trace", *map(_bytes, (here, torch_folder, root))]

    checked = 0
    for what, data in _contents(root):
        checked += 1
        assert [t for t in telltales if t in data] == [], what
    assert checked > 20


def _bytes(path: Path) -> bytes:
    return str(path).encode()


def _contents(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in (p for p in root.rglob("*") if p.is_file()):
        yield path.name, path.read_bytes()
        if path.suffix == ".torchscript":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    assert not name.endswith(".debug_pkl")
                    yield name, archive.read(name)
