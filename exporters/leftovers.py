"""What of a store can go, and why: a pure decision about what lies in each model's folder; and removing it."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from runtime.artifacts import DOWNLOADS, MANIFEST, OURS, Store
from runtime.errors import StoreError
from runtime.manifest import RECIPE, Artifact, Manifest
from runtime.publishing import downloads_of, is_locked, lock_of, remove_if_empty, replace_text, staging_of, store_errors


@dataclass(frozen=True)
class Shelf:
    """What lies in a store of one model.

    Attributes:
        manifest: What is published; empty where there is no manifest.
        files: Bytes of every plain file in its folder, but for the manifest.
        staged: Bytes that a build left behind, or is writing; `None` where there is no staging folder.
        fetched: Bytes that a pull left behind, or is writing; `None` where there is no folder of downloads.
        busy: Whether somebody is changing it now.
    """

    manifest: Manifest
    files: Mapping[str, int]
    staged: int | None = None
    fetched: int | None = None
    busy: bool = False


@dataclass(frozen=True)
class Removal:
    """Something that can go: a file of a model's folder, its staging folder (without a name) or its downloads."""

    model: str
    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Pruning:
    """What of one model can go: artifacts are taken off its manifest before any file is removed."""

    model: str
    artifacts: tuple[Artifact, ...] = ()
    removals: tuple[Removal, ...] = ()


def decide(shelf: Shelf, named: Sequence[str] = ()) -> Pruning:
    """Return what can go: artifacts of another recipe, those whose graph is named, and files that then nothing lists.

    What a manifest lists and this release's recipe made stays unless it is named. Where a build is going on, all stays.

    Args:
        shelf: What lies there.
        named: Globs of graph names.
    """
    model = shelf.manifest.model
    if shelf.busy:
        return Pruning(model)
    reasons = {a.graph.name: why for a in shelf.manifest.artifacts if (why := _why(a, named))}
    gone = tuple(a for a in shelf.manifest.artifacts if a.graph.name in reasons)
    kept = {file.name for a in shelf.manifest.artifacts if a not in gone for file in a.files}
    orphaned = {file.name for a in gone for file in a.files} - kept
    removals = [
        Removal(model, name, size, reasons.get(name) or _unlisted(name in orphaned))
        for name, size in sorted(shelf.files.items())
        if name not in kept and (name in orphaned or OURS.fullmatch(name))
    ]
    if shelf.staged is not None:
        removals.append(Removal(model, "", shelf.staged, "a build was killed"))
    if shelf.fetched is not None:
        removals.append(Removal(model, DOWNLOADS, shelf.fetched, "a pull was given up; it would go on from here"))
    return Pruning(model, gone, tuple(removals))


def _why(artifact: Artifact, named: Sequence[str]) -> str | None:
    if any(fnmatchcase(artifact.graph.name, glob) for glob in named):
        return "named by --remove"
    if artifact.outdated:
        built = artifact.facts.get("versions", {}).get("recipe", "unknown")
        return f"made by recipe {built}, this release has {RECIPE}"
    return None


def _unlisted(orphaned: bool) -> str:
    return "read by nothing that stays" if orphaned else "listed by no manifest"


def models(store: Store) -> list[str]:
    """Return the models that the store has anything of: published, staged, fetched or without a manifest."""
    there = {*store.models(), *map(_model_staged_in, store.unfinished()), *_without_manifest(store)}
    folders = {downloads_of(store, model) for model in there}
    return sorted({*there, *(path.name.replace("--", "/") for path in store.downloads() if path not in folders)})


def _model_staged_in(staging: Path) -> str:
    """Return the model whose build staged there: its folder is the only one."""
    deepest = next((Path(folder) for folder, below, _ in os.walk(staging) if not below), staging)
    return deepest.relative_to(staging).as_posix() if deepest != staging else staging.name.replace("--", "/")


def _without_manifest(store: Store) -> Iterator[str]:
    for folder, below, files in os.walk(store.root):
        below[:] = [name for name in below if not name.startswith(".")]
        if Path(folder) != store.root and MANIFEST not in files and any(map(OURS.fullmatch, files)):
            yield Path(folder).relative_to(store.root).as_posix()


def look(store: Store, model: str) -> Shelf:
    """Return what lies in a store of one model.

    Raises:
        ManifestError: Its manifest cannot be used, so that nobody knows what it lists.
    """
    manifest, folder, staging = store.read(model), store.folder(model), staging_of(store, model)
    paths = folder.iterdir() if folder.is_dir() else ()
    files = {path.name: path.lstat().st_size for path in paths if path.is_file() and path.name != MANIFEST}
    return Shelf(manifest, files, _bytes_in(staging), _bytes_in(downloads_of(store, model)), is_locked(store, model))


def _bytes_in(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(store: Store, pruning: Pruning, named: Sequence[str] = ()) -> None:
    """Remove what was decided on, if that is still what can go: first from the manifest, then the files.

    Raises:
        StoreError: The folder cannot be written, is being built in, or has changed since.
    """
    from filelock import Timeout

    model = pruning.model
    with store_errors(store.root):
        try:
            held = lock_of(store, model).acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{model} is being built or pulled now: nothing of it was removed. Try again afterwards."
            ) from None
        with held:
            if decide(replace(look(store, model), busy=False), named) != pruning:
                raise StoreError(f"{model} has changed meanwhile: nothing of it was removed. Try again.")
            _remove(store, pruning)


def _remove(store: Store, pruning: Pruning) -> None:
    model, folder = pruning.model, store.folder(pruning.model)
    if pruning.artifacts:
        kept = tuple(a for a in store.read(model).artifacts if a not in pruning.artifacts)
        if kept:
            replace_text(folder / MANIFEST, Manifest(model, kept).to_text())
        else:
            (folder / MANIFEST).unlink()
    for removal in pruning.removals:
        if removal.name == DOWNLOADS:
            shutil.rmtree(downloads_of(store, model))
            with contextlib.suppress(OSError):  # there are those of other models
                downloads_of(store, model).parent.rmdir()
        elif removal.name:
            (folder / removal.name).unlink(missing_ok=True)
        else:
            shutil.rmtree(staging_of(store, model))
    remove_if_empty(folder)
