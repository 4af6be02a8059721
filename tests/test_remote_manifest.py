"""Manifests that somebody else wrote are not believed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import request_for

from runtime.errors import ManifestError
from runtime.manifest import Artifact, ArtifactKey, Manifest, StoredFile, TensorInfo
from runtime.sharing.remote_manifest import merge, parse

WHERE = "hf://a/b@0/test/tiny/manifest.json"
KEY = ArtifactKey(None, "onnx", "cpu", "fp32", (32, 32), (), "random:0")
MAPS = replace(KEY, out_indices=(-2, -1))
GRAPH = StoredFile("maps_-2,-1.cpu.fp32.uint8.0011aabb2233.onnx", 7, "a" * 64)
WEIGHTS = StoredFile("weights.0ea6acd18469.data", 4096, "b" * 64)
TENSOR = TensorInfo("images", ("batch", 3, 32, 32))
ARTIFACT = Artifact(KEY, (GRAPH, WEIGHTS), (TENSOR,), (TENSOR,), {"source": {"licence": "MIT"}})
MANIFEST = Manifest("test/tiny", (replace(ARTIFACT, key=MAPS), ARTIFACT))


def altered(change: Callable[[Any], object]) -> str:
    data = json.loads(MANIFEST.to_text())
    change(data)
    return json.dumps(data)


def entry(**values: Any) -> Callable[[Any], object]:
    return lambda data: data["artifacts"][0].update(values)


def file(**values: Any) -> Callable[[Any], object]:
    return lambda data: data["artifacts"][0]["files"][0].update(values)


def test_a_manifest_as_we_write_it_is_read() -> None:
    assert parse(MANIFEST.to_text(), WHERE, "test/tiny") == MANIFEST


CHECKPOINT = "checkpoint:0123456789ab"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("test/tiny_vit", {}),
    ("test/tiny_vit", {"weights": "random"}),
    ("test/tiny_vit", {"weights": "random", "seed": 2**64 - 1}),
    ("test/tiny_vit", {"weights": "random", "seed": -(2**63)}),
    ("test/tiny_vit", {"weights": CHECKPOINT}),
    ("test/tiny_vit", {"checkpoint_path": __file__}),
    ("test/tiny_initial", {}),
    ("universal/vit_tiny_patch16_224_random", {"weights": "random"}),
]


@pytest.mark.parametrize(("name", "options"), REQUESTS)
def test_whatever_weights_a_build_can_name_are_read(name: str, options: dict[str, Any]) -> None:
    key = replace(KEY, weights=request_for(name, **options).weights_key)
    manifest = Manifest(name, (replace(ARTIFACT, key=key),))

    assert parse(manifest.to_text(), WHERE, name) == manifest


def test_weights_of_every_kind_were_tried() -> None:
    kinds = {request_for(name, **options).weights_key.partition(":")[0] for name, options in REQUESTS}

    assert kinds == {"pretrained", "random", "initial", "checkpoint"}


NAMES = [
    "../../../.bashrc",
    "/etc/passwd",
    "sub/graph.onnx",
    "..",
    "..\\graph.onnx",
    "C:graph.onnx",
    ".locks",
    "manifest.json",
    "graph.onnx.part",
    "graph",
    "graph.onnx\n",
    "graph\u202e.onnx",
    "~.onnx",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_outside_its_folder_or_with_a_name_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(altered(file(name=name)), WHERE, "test/tiny")

    assert str(caught.value).startswith(f"{WHERE} lists {name!r}, which is no")
    assert str(caught.value).endswith("was not written by `python -m exporters.push`: ask who pushed it.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (file(bytes=-1), "without a proper size and SHA-256"),
        (file(sha256="A" * 64), "without a proper size and SHA-256"),
        (file(sha256="a" * 63), "without a proper size and SHA-256"),
        (file(sha256="c" * 64), "with two contents"),
        (file(bytes=8), "with two contents"),
        (file(bytes="many"), "is not a valid manifest"),
        (entry(files=[]), "an artifact without files"),
        (entry(key=KEY.to_json()), "two artifacts with one key"),
        (entry(key=KEY.to_json() | {"weights": "random:0\x1b[2J"}), "an artifact whose key cannot be printed"),
        (entry(key=KEY.to_json() | {"options": {"a": "\x07"}}), "an artifact whose key cannot be printed"),
        (entry(key=KEY.to_json() | {"weights": "random:x"}), "an artifact of the weights 'random:x'"),
        (entry(key=KEY.to_json() | {"weights": "initial:"}), "an artifact of the weights 'initial:'"),
        (entry(key=KEY.to_json() | {"weights": f"random:{'9' * 5000}"}), "which no build names so"),
        (file(name="embedding.0123456789ab.pt2"), "'embedding.0123456789ab.pt2' as the graph of an artifact of format"),
        (entry(versions=None), "has 'versions' that is no object"),
        (entry(passes=[1]), "has 'passes' that is no object"),
        (entry(key=[]), "is not a valid manifest"),
        (entry(source=["MIT"]), "has 'source' that is no object"),
        (entry(also_served_by=5), "has 'also_served_by' that is no object"),
        (entry(parity={"outputs": [1]}), "whose outputs are no objects"),
        (entry(parity={"outputs": [{"min_cosine": "1 | <script>"}]}), "a cosine that is no number"),
        (lambda data: data.update(model="test/other"), "is the manifest of 'test/other', not of 'test/tiny'"),
        (lambda data: data.update(artifacts=None), "is not a valid manifest"),
        (lambda data: data.update(schema_version="new"), "is not a valid manifest"),
        (lambda data: data.update(schema_version=3), "has schema version 3, this release reads up to 2"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_told(change: Callable[[Any], object], reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(altered(change), WHERE, "test/tiny")

    assert str(caught.value).startswith(WHERE)
    assert reason in str(caught.value)
    assert "Delete" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "<html>", "[]", "null", "[" * 100_000, '{"schema_version": 2}'])
def test_what_is_no_manifest_is_told(text: str) -> None:
    with pytest.raises(ManifestError, match="is not a valid manifest"):
        parse(text, WHERE, "test/tiny")


def test_the_first_schema_is_still_read() -> None:
    def as_of_old(data: Any) -> None:
        data["schema_version"] = 1
        for listed in data["artifacts"]:
            del listed["key"]["target"]

    assert parse(altered(as_of_old), WHERE, "test/tiny") == MANIFEST


def test_merging_keeps_what_is_there_under_other_keys() -> None:
    newer = replace(ARTIFACT, files=(replace(GRAPH, name="other.onnx", sha256="d" * 64), WEIGHTS))

    assert merge(MANIFEST, [newer], WHERE).artifacts == (replace(ARTIFACT, key=MAPS), newer)
    assert merge(Manifest("test/tiny"), MANIFEST.artifacts, WHERE) == MANIFEST
    assert merge(MANIFEST, MANIFEST.artifacts, WHERE).to_text() == MANIFEST.to_text()


def test_a_file_that_another_artifact_reads_is_never_exchanged() -> None:
    altered_weights = replace(ARTIFACT, files=(GRAPH, replace(WEIGHTS, sha256="e" * 64)))

    with pytest.raises(ManifestError, match=r"test/tiny: .* lists weights\.0ea6acd18469\.data with another content"):
        merge(MANIFEST, [altered_weights], WHERE)
