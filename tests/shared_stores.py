"""Stores as tests share them: parts of the built one, under other names, altered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.artifacts import MANIFEST, Store
from runtime.manifest import Artifact, Manifest

NAME = "test/tiny_vit"


def part_of(built: Path, root: Path, keep: Callable[[Artifact], bool], name: str = NAME) -> Store:
    """Return a store in `root` with some of the built artifacts, under the name of another model if one is given."""
    store, source = Store(root), Store(built)
    kept = tuple(artifact for artifact in source.read(NAME).artifacts if keep(artifact))
    store.folder(name).mkdir(parents=True, exist_ok=True)
    for file in {file for artifact in kept for file in artifact.files}:
        shutil.copyfile(source.folder(NAME) / file.name, store.folder(name) / file.name)
    (store.folder(name) / MANIFEST).write_text(Manifest(name, kept).to_text())
    return store


def is_embedding(artifact: Artifact) -> bool:
    return artifact.key.out_indices is None and artifact.key.format == "onnx"


def is_maps(artifact: Artifact) -> bool:
    return artifact.key.out_indices is not None and artifact.key.format == "onnx"


def change(text: bytes, alter: Callable[[Any], object]) -> bytes:
    """Return a manifest after a change of its JSON."""
    data = json.loads(text)
    alter(data)
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def flipped(body: bytes) -> bytes:
    """Return the same with one bit changed."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def files_under(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, but for locks and other hidden files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: body for name, body in found.items() if not any(part.startswith(".") for part in name.split("/"))}
