"""From an artifact's key back to the request that it answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import request_for

from runtime import registry
from runtime.errors import ArtifactError, BackboneError
from runtime.manifest import Form
from runtime.origin import request_of


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("test/tiny_vit", {}),
        ("test/tiny_vit", {"weights": "random", "seed": 7}),
        ("test/tiny_vit", {"out_indices": 2}),
        ("test/tiny_vit", {"out_indices": (-3, -1), "image_size": (24, 48)}),
        ("test/tiny_vit", {"image_size": "dynamic"}),
        ("test/tiny_vit", {"input": "uint8"}),
        ("test/tiny_vit", {"precision": "int8"}),
        ("test/tiny_tokens", {"include_patch_tokens": True}),
        ("test/tiny_initial", {}),
        ("test/volumes", {"weights": "random"}),
    ],
)
def test_the_request_has_the_artifacts_key(name: str, asked: dict[str, Any]) -> None:
    request = request_for(name, **asked)
    key = request.key(Form("onnx", "cpu", request.precision, request.input))

    found = request_of(registry.find(name), key, artifacts="folder", device="cpu")

    assert found.key(key.form) == key
    assert (found.artifacts, found.device, found.precision, found.input) == (
        "folder",
        "cpu",
        request.precision,
        request.input,
    )
    assert found.image_size == (request.size if "image_size" in asked else None)  # commands stay short


def test_a_local_checkpoint_is_found_by_its_file_or_its_digits(tmp_path: Path) -> None:
    file, other = tmp_path / "weights.pth", tmp_path / "other.pth"
    file.write_bytes(b"weights")
    other.write_bytes(b"others")
    request = request_for("test/tiny_vit", checkpoint_path=file)
    key, spec = request.key(Form("onnx")), request.spec

    assert request_of(spec, key, checkpoint_path=file).checkpoint_path == str(file)
    assert request_of(spec, key).weights == key.weights
    with pytest.raises(ArtifactError, match=r"answers to .*checkpoint:.* published is .*checkpoint:"):
        request_of(spec, key, checkpoint_path=other)


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("test/tiny_initial", {"weights": "random:0"}, "answers to embedding, onnx for cpu, fp32, 32x32, initial:3"),
        ("test/tiny_vit", {"options": (("width", "7"),)}, "unknown keyword: width"),
        ("test/tiny_vit", {"image_size": (33, 33)}, "multiples of"),
        ("test/own", {"out_indices": (-1,)}, "takes no out_indices"),
    ],
)
def test_a_key_that_nobody_can_ask_for_is_an_error(name: str, changed: dict[str, Any], says: str) -> None:
    key = replace(request_for(name).key(Form("onnx")), **changed)

    with pytest.raises(BackboneError, match=says):
        request_of(registry.find(name), key)
