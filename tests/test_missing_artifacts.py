"""Artifacts that are missing: an error or one warning, with the command that builds them; never other weights."""

import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import request_for
from stores import NAME, key_of_command, load_from, published, republish

from runtime import load_model
from runtime.artifacts import Store
from runtime.errors import ArtifactNotFoundError, BackendFallbackWarning
from runtime.manifest import Form

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


@pytest.fixture(params=["onnx", "torchscript"])
def format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("fallback", [{"on_fallback": "error"}, {}], ids=["argument", "environment"])
def test_production_gets_an_error_that_says_what_is_built(
    store: Store, format: str, fallback: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKBONE_ON_FALLBACK", "warn" if fallback else "error")

    with pytest.raises(ArtifactNotFoundError) as caught:
        load_model(NAME, out_indices=1, backend=format, weights="random", artifacts=store.root, **fallback)

    form = Form(format)
    built = f"Built: 2, {form}, 32x32, random:0 weights; embedding, {form}, 32x32, random:0 weights."
    asked = f"No {format} artifact of 'test/tiny_vit' for 1, {form}, 32x32, random:0 weights in {store.root}."
    assert f"{asked} {built}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (NAME, {}),
        (NAME, {"out_indices": 2}),
        (NAME, {"out_indices": (-2,)}),
        (NAME, {"out_indices": [0, 2]}),
        (NAME, {"weights": "random", "seed": 7}),
        (NAME, {"image_size": 64}),
        (NAME, {"image_size": (16, 24)}),
        (NAME, {"image_size": "dynamic", "out_indices": 1}),
        ("test/tiny_initial", {}),
        ("test/own", {"weights": "random"}),
        ("test/tiny_tokens", {"include_patch_tokens": True}),
    ],
)
def test_the_command_printed_builds_what_is_missing(
    name: str, options: dict[str, Any], format: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my artifacts"

    with pytest.raises(ArtifactNotFoundError) as caught:
        load_model(name, backend=format, artifacts=folder, on_fallback="error", **options)

    assert key_of_command(str(caught.value)) == request_for(name, **options).key(Form(format))
    assert shlex.quote(f"--artifacts={folder}") in str(caught.value)
    assert "--import=tiny_backbones" in str(caught.value)


def test_a_fallback_warns_exactly_once_and_tells_the_truth(format: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(NAME, backend=format, weights="random", artifacts=tmp_path, device="cpu")
        embedding = model(IMAGES)

    (warning,) = caught
    assert warning.category is BackendFallbackWarning
    assert warning.filename == __file__
    assert key_of_command(str(warning.message)) == request_for(NAME, weights="random").key(Form(format))
    assert (model.backend, model.providers) == ("eager", ())
    assert str(warning.message).startswith(model.info["fallback"])
    np.testing.assert_array_equal(embedding, load_model(NAME, backend="eager", weights="random", device="cpu")(IMAGES))


def test_a_random_artifact_is_never_served_as_pretrained(store: Store, format: str) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"pretrained weights in .* Built: .*random:0 weights"):
        load_from(store, format, weights="pretrained")
    with pytest.raises(ArtifactNotFoundError, match=r"random:1 weights in .* Built: .*random:0 weights"):
        load_from(store, format, seed=1)


def test_a_pretrained_artifact_is_never_served_as_random(store: Store, format: str) -> None:
    old = published(store, format)
    republish(store, old, replace(old, key=replace(old.key, weights="pretrained")))

    assert load_from(store, format, weights="pretrained").info["artifact"]["key"]["weights"] == "pretrained"
    with pytest.raises(ArtifactNotFoundError, match=r"random:0 weights in .* Built: .*pretrained weights"):
        load_from(store, format)
