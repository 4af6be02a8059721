"""Artifacts that are damaged: refused by name, with the command that mends it; artifacts replaced during a load."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from stores import NAME, graph_of, key_of_command, list_as_it_is, load_from, published, republish, weights_of

from runtime import load
from runtime.artifacts import Store
from runtime.errors import ArtifactCorruptError, BackendFallbackWarning, ManifestError
from runtime.manifest import Artifact
from runtime.providers import CUDA

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


@pytest.fixture(params=["onnx", "torchscript"])
def format(request: pytest.FixtureRequest) -> str:
    return request.param


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("moved")))


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("which", [graph_of, weights_of])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "bytes, the manifest says"),
        (remove, "is missing, though the manifest lists it"),
        (link, "is not a plain file"),
        (turn_into_folder, "is not a plain file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    store: Store, format: str, which: Callable[[Store, str], Path], damage: Callable[[Path], None], words: str
) -> None:
    path = which(store, format)
    key = published(store, format).key
    damage(path)

    with pytest.raises(ArtifactCorruptError) as caught:
        load_from(store, format)

    assert f"{path} " in str(caught.value)
    assert words in str(caught.value)
    assert key_of_command(str(caught.value)) == key


def test_a_flipped_bit_is_found_by_the_full_check_only(store: Store, format: str) -> None:
    path = weights_of(store, format)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    assert load_from(store, format).backend == format
    assert load_from(store, format, verify="size").backend == format
    with pytest.raises(ArtifactCorruptError, match=f"{path.name} has another SHA-256 than the manifest says"):
        load_from(store, format, verify="full")


def test_a_whole_artifact_passes_the_full_check(store: Store, format: str) -> None:
    assert load_from(store, format, verify="full").backend == format


def test_garbage_in_a_graph_is_an_error_of_the_artifact(store: Store, format: str) -> None:
    _expect_a_garbage_graph_to_be_named(store, format)


def test_garbage_in_a_graph_is_not_blamed_on_the_provider_asked_for(store: Store) -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    _expect_a_garbage_graph_to_be_named(store, "onnx", providers=[CUDA], device=None)


def _expect_a_garbage_graph_to_be_named(store: Store, format: str, **options: Any) -> None:
    path = graph_of(store, format)
    path.write_bytes(b"\x93" * path.stat().st_size)

    with pytest.raises(ArtifactCorruptError, match=f"cannot load {path}") as caught:
        load_from(store, format, **options)

    assert key_of_command(str(caught.value)) == published(store, format).key


def test_a_graph_that_reads_beyond_its_weight_data_is_refused(store: Store, format: str) -> None:
    path = weights_of(store, format)
    path.write_bytes(path.read_bytes()[:1000])
    list_as_it_is(store, format)

    with pytest.raises(ArtifactCorruptError, match="cannot load"):
        load_from(store, format, verify="full")


def test_a_graph_that_reads_outside_its_folder_is_refused(store: Store) -> None:
    path = graph_of(store, "onnx")
    model = onnx.load(path, load_external_data=False)
    for entry in [e for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"]:
        shutil.copy(path.parent / entry.value, path.parent.parent)
        entry.value = f"../{entry.value}"
    onnx.save(model, path)
    list_as_it_is(store, "onnx")

    with pytest.raises(ArtifactCorruptError, match="escapes model directory"):
        load_from(store, "onnx", verify="full")


@pytest.mark.parametrize("backend", ["auto", "onnx", "torchscript"])
@pytest.mark.parametrize("text", ["{", '{"schema_version": 2}'], ids=["invalid", "newer"])
def test_a_manifest_that_cannot_be_read_is_never_passed_over(store: Store, backend: str, text: str) -> None:
    (store.folder(NAME) / "manifest.json").write_text(text)

    with pytest.raises(ManifestError, match=r"python -m exporters\.build"):
        load_from(store, backend, on_fallback="warn")


def before_first_opening(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> list[Artifact | None]:
    """Let `change` happen after load_model read the manifest; return the artifacts that it opens."""
    opened: list[Artifact | None] = []
    real = load.open_session

    def opening(request: Any, backend: str, artifact: Artifact | None) -> Any:
        if not opened:
            change()
        opened.append(artifact)
        return real(request, backend, artifact)

    monkeypatch.setattr(load, "open_session", opening)
    return opened


def test_a_load_survives_that_a_build_replaces_its_artifact(
    store: Store, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_from(store, format)(IMAGES)
    old = published(store, format)
    new = replace(old, files=(replace(old.graph, name=f"rebuilt.{format}"), *old.files[1:]))

    def rebuild() -> None:
        graph_of(store, format).rename(store.folder(NAME) / new.graph.name)
        republish(store, old, new)

    opened = before_first_opening(monkeypatch, rebuild)

    np.testing.assert_array_equal(load_from(store, format)(IMAGES), expected)
    assert opened == [old, new]


def test_a_load_whose_artifact_is_withdrawn_falls_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = published(store, "onnx")

    def withdraw() -> None:
        graph_of(store, "onnx").unlink()
        republish(store, old)

    opened = before_first_opening(monkeypatch, withdraw)

    with pytest.warns(BackendFallbackWarning, match="No onnx artifact"):
        assert load_from(store, "onnx", on_fallback="warn").backend == "eager"
    assert opened == [old, None]
