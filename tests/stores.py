"""What tests of the store share: artifacts of a copied store, and what a printed command would build."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import request_for

from exporters import arguments, build
from runtime import load_model, selection
from runtime.artifacts import Store, sha256_of
from runtime.backbone import Backbone
from runtime.manifest import Artifact, ArtifactKey, Form, Manifest

NAME = "test/tiny_vit"


def load_from(store: Store, format: str, **options: Any) -> Backbone:
    given = {"backend": format, "weights": "random", "artifacts": store.root, "on_fallback": "error", "device": "cpu"}
    return load_model(NAME, **(given | options))


def published(store: Store, format: str) -> Artifact:
    """Return the artifact of the embedding."""
    artifact = selection.find_artifact(request_for(NAME, weights="random"), store.read(NAME), (Form(format),))
    assert artifact is not None
    return artifact


def graph_of(store: Store, format: str) -> Path:
    return store.folder(NAME) / published(store, format).graph.name


def weights_of(store: Store, format: str) -> Path:
    return store.folder(NAME) / published(store, format).files[1].name


def republish(store: Store, old: Artifact, *new: Artifact) -> None:
    kept = (a for a in store.read(NAME).artifacts if a != old)
    (store.folder(NAME) / "manifest.json").write_text(Manifest(NAME, (*kept, *new)).to_text())


def list_as_it_is(store: Store, format: str) -> None:
    """Let the manifest state the sizes and hashes that the files now have."""
    old = published(store, format)
    paths = [store.folder(NAME) / file.name for file in old.files]
    files = [replace(f, bytes=p.stat().st_size, sha256=sha256_of(p)) for f, p in zip(old.files, paths, strict=True)]
    republish(store, old, replace(old, files=tuple(files)))


def key_of_command(message: str) -> ArtifactKey:
    """Return the key that the command printed in `message` would build, by the builder's own parser."""
    line = next(line for line in message.splitlines() if line.startswith("Build it "))
    words = shlex.split(line.partition(": ")[2])
    assert words[:3] == ["python", "-m", "exporters.build"]
    (job,) = build._jobs(arguments.parser_of_build().parse_args(words[3:]))
    (form,) = job.forms
    return job.request.key(form)
