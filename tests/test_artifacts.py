"""The store's manifest: written byte for byte alike, read with suspicion; where the store lies."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.artifacts import Store, default_root, open_store
from runtime.errors import ManifestError
from runtime.manifest import Artifact, ArtifactKey, Manifest, StoredFile, TensorInfo, options_key

EMBEDDING = Artifact(
    key=ArtifactKey(None, "onnx", "cpu", "fp32", (32, 48), (), "pretrained"),
    files=(StoredFile("embedding.cpu.fp32.aa.onnx", 7, "aa"), StoredFile("weights.bb.data", 4096, "bb")),
    inputs=(TensorInfo("images", ("batch", 3, 32, 48)),),
    outputs=(TensorInfo("embedding", ("batch", 5)),),
    facts={"source": {"licence": "Apache-2.0", "gated": False}},
)
MAPS = Artifact(
    key=ArtifactKey(
        (-3, -1), "onnx", "cuda", "fp16", "dynamic", options_key({"tokens": True, "pool": "cls"}), "random:3"
    ),
    files=(StoredFile("maps.onnx", 1, "cc"),),
    inputs=(TensorInfo("images", ("batch", 3, "16*h", "16*w")),),
    outputs=(TensorInfo("map_0", ("batch", 5, "h", "w")), TensorInfo("map_1", ("batch", 5, "h", "w"))),
)
GOLDEN = """\
{
 "artifacts": [
  {
   "files": [
    {
     "bytes": 7,
     "name": "embedding.cpu.fp32.aa.onnx",
     "sha256": "aa"
    },
    {
     "bytes": 4096,
     "name": "weights.bb.data",
     "sha256": "bb"
    }
   ],
   "inputs": [
    {
     "dtype": "float32",
     "name": "images",
     "shape": [
      "batch",
      3,
      32,
      48
     ]
    }
   ],
   "key": {
    "format": "onnx",
    "image_size": [
     32,
     48
    ],
    "input": "float32",
    "options": {},
    "out_indices": null,
    "precision": "fp32",
    "target": "cpu",
    "weights": "pretrained"
   },
   "outputs": [
    {
     "dtype": "float32",
     "name": "embedding",
     "shape": [
      "batch",
      5
     ]
    }
   ],
   "source": {
    "gated": false,
    "licence": "Apache-2.0"
   }
  }
 ],
 "model": "my/model",
 "schema_version": 2
}
"""


def test_a_manifest_is_written_byte_for_byte_like_this() -> None:
    assert Manifest("my/model", (EMBEDDING,)).to_text() == GOLDEN


def test_the_order_of_publishing_leaves_no_trace_in_the_manifest() -> None:
    assert Manifest("m", (EMBEDDING, MAPS)).to_text() == Manifest("m", (MAPS, EMBEDDING)).to_text()


@pytest.mark.parametrize("artifact", [EMBEDDING, MAPS], ids=["embedding", "maps"])
def test_what_was_written_is_read_back(artifact: Artifact) -> None:
    manifest = Manifest("my/model", (artifact,))

    assert Manifest.from_text(manifest.to_text(), Path("manifest.json")) == manifest


@pytest.mark.parametrize(
    ("artifact", "words"),
    [
        (EMBEDDING, "embedding, onnx for cpu, fp32, 32x48, pretrained weights"),
        (MAPS, "-3,-1, onnx for cuda, fp16, dynamic, pool=cls, tokens=True, random:3 weights"),
    ],
)
def test_a_key_is_described_in_the_words_of_a_user(artifact: Artifact, words: str) -> None:
    assert artifact.key.describe() == words


@pytest.mark.parametrize(
    "change",
    [
        {"out_indices": (-1,)},
        {"format": "torchscript"},
        {"target": "cuda"},
        {"precision": "bf16"},
        {"image_size": "dynamic"},
        {"options": options_key({"tokens": True})},
        {"weights": "random:0"},
        {"input": "uint8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_key_survives_the_manifest(change: dict[str, Any]) -> None:
    key = replace(EMBEDDING.key, **change)

    assert key != EMBEDDING.key
    assert ArtifactKey.from_json(json.loads(json.dumps(key.to_json()))) == key


def changed(*path: Any, to: Any = None) -> str:
    """Return the golden manifest with the value at `path` replaced, or removed where `to` is `...`."""
    data = json.loads(GOLDEN)
    place = data
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(data)


NAME = ("artifacts", 0, "files", 1, "name")
INVALID = {
    "empty": "",
    "cut short": GOLDEN[:100],
    "a list": "[]",
    "a string": '"manifest"',
    "null": "null",
    "not UTF-8": b"\xff\xfe",
    "no schema version": changed("schema_version", to=...),
    "schema version is text": changed("schema_version", to="one"),
    "no model": changed("model", to=...),
    "another model": changed("model", to="my/other"),
    "no artifacts": changed("artifacts", to=...),
    "artifacts is a dict": changed("artifacts", to={"key": {}}),
    "artifacts is null": changed("artifacts", to=None),
    "an artifact is null": changed("artifacts", 0, to=None),
    "no key": changed("artifacts", 0, "key", to=...),
    "the key lacks its weights": changed("artifacts", 0, "key", "weights", to=...),
    "out_indices is a word": changed("artifacts", 0, "key", "out_indices", to="two"),
    "image_size has one side": changed("artifacts", 0, "key", "image_size", to=[32]),
    "image_size is null": changed("artifacts", 0, "key", "image_size", to=None),
    "options is a list": changed("artifacts", 0, "key", "options", to=["tokens"]),
    "no files": changed("artifacts", 0, "files", to=...),
    "an empty list of files": changed("artifacts", 0, "files", to=[]),
    "a file lacks its hash": changed("artifacts", 0, "files", 0, "sha256", to=...),
    "a file's size is a word": changed("artifacts", 0, "files", 0, "bytes", to="many"),
    "an output lacks its shape": changed("artifacts", 0, "outputs", 0, "shape", to=...),
    "a shape is a number": changed("artifacts", 0, "inputs", 0, "shape", to=3),
    "a file above the folder": changed(*NAME, to="../weights.bb.data"),
    "a file in a subfolder": changed(*NAME, to="sub/weights.bb.data"),
    "an absolute path": changed(*NAME, to="/etc/passwd"),
    "a backslash": changed(*NAME, to="..\\weights.bb.data"),
    "a name with a zero byte": changed(*NAME, to="weights\0.data"),
    "an empty name": changed(*NAME, to=""),
    "the folder itself": changed(*NAME, to="."),
    "the folder above": changed(*NAME, to=".."),
    "a name that is a number": changed(*NAME, to=5),
}


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
def test_an_invalid_manifest_is_refused_with_its_path_and_a_remedy(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "my/model/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ManifestError) as caught:
        Store(tmp_path).read("my/model")

    assert str(path) in str(caught.value)
    assert f"Delete {path} and build the model again: python -m exporters.build" in str(caught.value)


def test_a_manifest_of_a_newer_release_asks_for_an_upgrade(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"schema version 3, this release reads up to 2.*pip install --upgrade"):
        Manifest.from_text(changed("schema_version", to=3), tmp_path / "manifest.json")


@pytest.mark.parametrize(("format", "target"), [("onnx", "cpu"), ("torchscript", "any")])
def test_a_manifest_of_schema_version_1_is_read_as_made_for_cpu_or_for_any_device(
    format: str, target: str, tmp_path: Path
) -> None:
    data = json.loads(GOLDEN) | {"schema_version": 1}
    del data["artifacts"][0]["key"]["target"]  # which version 1 did not have
    data["artifacts"][0]["key"]["format"] = format

    read = Manifest.from_text(json.dumps(data), tmp_path / "manifest.json")

    key = replace(EMBEDDING.key, format=format, target=target)
    assert read == Manifest("my/model", (replace(EMBEDDING, key=key),))
    assert Manifest.from_text(read.to_text(), tmp_path / "manifest.json") == read  # written again as version 2


def test_a_folder_in_the_place_of_a_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "my/model/manifest.json").mkdir(parents=True)

    with pytest.raises(ManifestError, match="cannot be read"):
        Store(tmp_path).read("my/model")


def test_a_model_without_manifest_has_nothing_published(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert Store(tmp_path).read("my/model") == Manifest("my/model")
    assert Store(tmp_path).read("file/model") == Manifest("file/model")


def test_the_argument_names_the_store_before_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BACKBONE_ARTIFACTS", "~/from_environment")

    assert open_store(tmp_path).root == tmp_path
    assert open_store("~/here").root == Path.home() / "here"
    assert open_store(None).root == Path.home() / "from_environment"


@pytest.mark.parametrize("value", [None, ""])
def test_a_checkout_keeps_its_artifacts_beside_the_code(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKBONE_ARTIFACTS", raising=False)
    if value is not None:
        monkeypatch.setenv("BACKBONE_ARTIFACTS", value)

    assert default_root() == Path(runtime.__file__).parent.parent / "artifacts"


def test_an_installed_package_keeps_its_artifacts_in_the_users_data_folder(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(Path(runtime.__file__).parent, site / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "pyproject.toml").touch()  # somebody's project with its packages beside it is no checkout of ours
    code = (
        "import platformdirs, runtime.artifacts as a; print(a.__file__, a.default_root(), platformdirs.user_data_dir())"
    )
    variables = {k: v for k, v in os.environ.items() if k != "BACKBONE_ARTIFACTS"}
    variables |= {"PYTHONPATH": str(site), "HOME": str(tmp_path / "home"), "XDG_DATA_HOME": str(tmp_path / "data")}

    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True)

    module, root, data = done.stdout.split()
    assert Path(module).is_relative_to(site)
    assert Path(root) == Path(data) / "backbone-runtime" / "artifacts"
    assert Path(root).is_relative_to(tmp_path)
