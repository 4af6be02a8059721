"""Volumes: [B, C, D, H, W] from the request to both formats."""

from pathlib import Path

import numpy as np
import pytest
from conftest import FORMS, request_for

from exporters import pipeline
from exporters.gate import LIMITS
from exporters.plan import Job
from exporters.reference import make_reference
from runtime import eager, load_model
from runtime.artifacts import open_store
from runtime.errors import InputError, ManifestError, OptionError
from runtime.manifest import ArtifactKey

NAME = "test/volumes"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    for options in ({}, {"out_indices": 2}, {"image_size": (8, 16, 12)}):
        outcomes = pipeline.build(Job(request_for(NAME, artifacts=str(root), **options), FORMS))
        assert [o.status for o in outcomes] == ["built", "built"], outcomes
    return root


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "eager"])
def test_every_backend_embeds_volumes_of_any_batch_size(store: Path, backend: str) -> None:
    model = load_model(NAME, backend=backend, artifacts=store, on_fallback="error")
    eager = load_model(NAME, backend="eager")
    for count in (1, 2, 5):
        volumes = batch(count, 1, 16, 16, 16)
        embedding = model(volumes)
        assert embedding.shape == (count, 8)
        np.testing.assert_allclose(embedding, eager(volumes), atol=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "eager"])
def test_maps_of_volumes_have_five_dimensions(store: Path, backend: str) -> None:
    model = load_model(NAME, backend=backend, out_indices=2, artifacts=store, on_fallback="error")
    assert [m.shape for m in model(batch(3, 1, 16, 16, 16))] == [(3, 8, 4, 4, 4)] * 2


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "eager"])
def test_a_volume_need_not_be_a_cube(store: Path, backend: str) -> None:
    model = load_model(NAME, backend=backend, image_size=(8, 16, 12), artifacts=store, on_fallback="error")
    assert model(batch(1, 1, 8, 16, 12)).shape == (1, 8)
    with pytest.raises(InputError, match=r"\[B, 1, D, H, W\] with D, H, W = 8, 16, 12; got .*image_size=16 for other"):
        model(batch(1, 1, 16, 16, 16))


def test_a_volume_has_five_dimensions_and_is_told_so(store: Path) -> None:
    model = load_model(NAME, backend="onnx", artifacts=store)
    with pytest.raises(InputError, match="a batch has five dimensions"):
        model(batch(1, 16, 16, 16))


def test_pictures_are_not_preprocessed_for_volumes(store: Path) -> None:
    model = load_model(NAME, backend="onnx", artifacts=store)
    with pytest.raises(InputError, match="this backbone takes volumes"):
        model.preprocess(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize("size", ["dynamic", (16, 16), 16.0, 0])
def test_sizes_that_a_volume_cannot_have_are_refused(size: object) -> None:
    with pytest.raises(OptionError, match=r"must be pixels \(an int, or depth, height and width\)"):
        load_model(NAME, image_size=size, backend="eager")


def test_sides_of_a_volume_are_multiples_of_the_patch() -> None:
    with pytest.raises(OptionError, match=r"all sides must be multiples .* Nearest: \(8, 16, 12\)"):
        load_model(NAME, image_size=(9, 16, 13), backend="eager")


def test_the_manifest_says_of_each_map_which_block_it_is_and_whether_it_is_normed(store: Path) -> None:
    artifacts = {a.key.out_indices: a for a in open_store(store).read(NAME).artifacts}
    assert artifacts[-2, -1].to_json()["maps"] == [{"block": 0, "normed": False}, {"block": 1, "normed": True}]
    assert "maps" not in artifacts[None].to_json()


def test_volumes_are_verified_at_one_and_three_and_recorded(store: Path) -> None:
    entry = next(a.to_json() for a in open_store(store).read(NAME).artifacts if a.key.image_size == (8, 16, 12))
    assert entry["parity"]["batches"] == [1, 3]
    assert entry["parity"]["image_sizes"] == [[8, 16, 12]]
    assert entry["inputs"][0]["shape"] == ["batch", 1, 8, 16, 12]


def test_the_limit_of_volumes_is_the_issues() -> None:
    assert LIMITS["fp32", 3].relative_rms == 1e-4


@pytest.mark.parametrize("sides", [[32], [1, 2, 3, 4], []])
def test_a_manifest_with_another_number_of_sides_is_invalid(store: Path, sides: list[int]) -> None:
    key = next(iter(open_store(store).read(NAME).artifacts)).key.to_json()
    with pytest.raises(ManifestError, match=f"an image size of {len(sides)} sides"):
        ArtifactKey.from_json({**key, "image_size": sides})


@pytest.mark.parametrize(("name", "count"), [(NAME, 1), ("test/own", 3)])
def test_float64_judges_three_images_or_one_volume(name: str, count: int) -> None:
    request = request_for(name)
    reference = make_reference(request, eager.build(request))

    assert [len(output) for output in reference.exact] == [count]
    assert len(reference.batches[reference.exact_batch]) == count
