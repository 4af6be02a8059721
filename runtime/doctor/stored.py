"""Looking at the folder of artifacts: what is read there, and nothing that is decided."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from runtime import registry
from runtime.artifacts import ENVIRONMENT_VARIABLE, Store, named_address, open_store
from runtime.commands import build_command
from runtime.doctor.facts import StoredModel, StoreFacts
from runtime.errors import BackboneError, UnknownModelError
from runtime.hub import first_line
from runtime.manifest import Artifact
from runtime.origin import request_of


def look_at_store(artifacts: str | None, *, full: bool = False) -> StoreFacts:
    """Return what lies in the folder of artifacts; every published file is hashed if `full`."""
    if address := named_address(artifacts):
        return StoreFacts(str(address), _named_by(artifacts), remote=True)
    store = open_store(artifacts)
    root, named_by = str(store.root), _named_by(artifacts)
    if not store.root.is_dir():
        return StoreFacts(root, named_by, exists=False)
    unwritable = _unwritable(store.root)
    try:
        models = tuple(_look_at_model(store, name, full) for name in store.models())
        unfinished, fetched = len(store.unfinished()), len(store.downloads())
    except (BackboneError, OSError) as error:
        return StoreFacts(root, named_by, unreadable=first_line(error), unwritable=unwritable)
    return StoreFacts(root, named_by, True, None, unwritable, models, unfinished, fetched, full)


def _named_by(artifacts: str | None) -> str:
    if artifacts is not None:
        return "--artifacts"
    return f"${ENVIRONMENT_VARIABLE}" if os.environ.get(ENVIRONMENT_VARIABLE) else "the default"


def _unwritable(root: Path) -> str | None:
    """Return why nothing can be written there; what is written for the trial is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"\0")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _look_at_model(store: Store, name: str, full: bool) -> StoredModel:
    try:
        manifest = store.read(name)
    except BackboneError as error:
        return StoredModel(name, problem=str(error))
    problems = store.problems(manifest, full=full)
    files = {file for artifact in manifest.artifacts for file in artifact.files}
    hurt = [artifact for artifact in manifest.artifacts if problems.keys() & set(artifact.files)]
    return StoredModel(
        name,
        artifacts=len(manifest.artifacts),
        bytes=sum(file.bytes for file in files),
        damaged=tuple(f"{file.name} {problem}" for file, problem in problems.items()),
        rebuild=tuple(rebuild_command(name, artifact, store, force=True) for artifact in hurt),
        outdated=tuple(rebuild_command(name, a, store) for a in manifest.artifacts if a.outdated),
        versions=_versions(manifest.artifacts),
        unlisted=sum(path.stat().st_size for path in store.unlisted(manifest)),
        registered=_is_registered(name),
    )


def rebuild_command(name: str, artifact: Artifact, store: Store, *, force: bool = False) -> str:
    """Return the command that makes an artifact anew; for one that nobody can ask for, the one that removes it."""
    try:
        request = request_of(registry.find(name), artifact.key, artifacts=str(store.root))
    except BackboneError:
        return f"python -m exporters.prune {name} --remove {artifact.graph.name} --artifacts={store.root}"
    return build_command(request, artifact.key.form) + (" --force" if force else "")


def _versions(artifacts: Iterable[Artifact]) -> tuple[dict[str, str], ...]:
    found = [dict(artifact.facts.get("versions", {})) for artifact in artifacts]
    return tuple(versions for index, versions in enumerate(found) if versions not in found[:index])


def _is_registered(name: str) -> bool:
    try:
        registry.find(name)
    except UnknownModelError:
        return False
    return True
