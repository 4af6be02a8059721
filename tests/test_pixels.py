"""input="uint8": images as they are, normalised inside the artifact."""

from pathlib import Path

import numpy as np
import pytest
from conftest import request_for
from stores import NAME

from exporters import pipeline
from exporters.plan import Job
from runtime import load_model
from runtime.artifacts import Store
from runtime.errors import InputError, OptionError
from runtime.manifest import Form

UINT8 = Form("onnx", "cpu", "fp32", "uint8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of test/tiny_vit that take float32 and uint8."""
    root = tmp_path_factory.mktemp("pixels")
    request = request_for(NAME, weights="random", artifacts=str(root))
    outcomes = pipeline.build(Job(request, (Form("onnx"), UINT8, Form("onnx", "cuda", "fp32", "uint8"))))
    assert [o.status for o in outcomes] == ["built"] * 3, outcomes
    return root


def pictures(count: int = 3) -> np.ndarray:
    side = request_for(NAME).size
    return np.random.default_rng(5).integers(0, 256, (count, *side, 3), dtype=np.uint8)  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["onnx", "openvino", "eager"])
def test_images_give_what_their_normalised_form_gives(backend: str, root: Path) -> None:
    given = {"weights": "random", "artifacts": root, "device": "cpu", "on_fallback": "error"}
    reference = load_model(NAME, backend="onnx", **given)
    model = load_model(NAME, backend=backend, input="uint8", **given)

    got, expected = model(pictures()), reference(reference.preprocess(pictures()))

    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if backend == "onnx":
        np.testing.assert_array_equal(got, expected)


def test_preprocess_gives_what_the_model_takes(root: Path) -> None:
    given = {"weights": "random", "artifacts": root, "device": "cpu", "backend": "onnx"}
    large = np.random.default_rng(6).integers(0, 256, (90, 130, 3), dtype=np.uint8)

    pixels = load_model(NAME, input="uint8", **given).preprocess(large)
    normalised = load_model(NAME, **given).preprocess(large)

    facts = request_for(NAME).spec.preprocessing
    again = (pixels / np.float32(255) - np.float32(facts.mean)) / np.float32(facts.std)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(normalised, again.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_floats_are_refused_by_what_takes_images_and_the_reverse(root: Path) -> None:
    given = {"weights": "random", "artifacts": root, "device": "cpu", "backend": "onnx", "on_fallback": "error"}
    images, floats = load_model(NAME, input="uint8", **given), load_model(NAME, **given)

    with pytest.raises(InputError, match=r"takes uint8 \[B, H, W, 3\].* loaded with input='uint8'"):
        images(floats.preprocess(pictures()))
    with pytest.raises(InputError, match=r"takes float32 \[B, 3, H, W\].* load it with input='uint8'"):
        floats(pictures())
    with pytest.raises(InputError, match="the last dimension is the channels, 3"):
        images(pictures().transpose(0, 3, 1, 2))


def test_what_declares_no_normalisation_does_not_take_images() -> None:
    with pytest.raises(OptionError, match="declares no mean and std"):
        load_model("test/own", input="uint8")


def test_the_manifest_tells_the_input(root: Path) -> None:
    [artifact] = [a for a in Store(root).read(NAME).artifacts if a.key.form == UINT8]

    side = request_for(NAME).size
    assert artifact.inputs[0].dtype == "uint8"
    assert artifact.inputs[0].shape == ("batch", *side, 3)
    assert artifact.graph.name.startswith("embedding.cpu.fp32.uint8.")
