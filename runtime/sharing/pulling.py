"""Bringing artifacts from a repository into a store: all of a model at once, or nothing."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.artifacts import ENVIRONMENT_VARIABLE, Store, file_problem, named_address, open_store
from runtime.errors import OptionError, StoreError
from runtime.manifest import DATA, Artifact, StoredFile
from runtime.publishing import Workspace, downloads_of, remove_if_empty, workspace
from runtime.sharing.address import parse_address
from runtime.sharing.remote_manifest import files_of, merge
from runtime.sharing.snapshot import Snapshot, take


@dataclass(frozen=True)
class Pulled:
    """What became of one model.

    Attributes:
        model: Registry name.
        commit: What its repository was at.
        artifacts: What the store now holds of those in the repository, in words.
        left_out: Artifacts that are programs and were not asked for, in words.
        bytes: Downloaded; 0 when everything was there.
        changed: Whether the store's manifest is another one now.
    """

    model: str
    commit: str
    artifacts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())
    bytes: int = 0
    changed: bool = False

    @property
    def status(self) -> str:
        """`pulled`, `up to date`, or `left out` when there was nothing but programs."""
        if not self.artifacts:
            return "left out"
        return "pulled" if self.changed or self.bytes else "up to date"


def pull(
    repository: str,
    pattern: str = "*",
    *,
    revision: str | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    allow_code: bool = False,
) -> list[Pulled]:
    """Bring shared artifacts into a store, and return what became of each model.

    Every file is compared with the SHA-256 of its manifest before anything is published; each model is published at
    once or not at all. What the store has already is not fetched again, and its other artifacts stay.

    Args:
        repository: `ORG/REPO`, `ORG/REPO@REVISION`, or either with `hf://` before it.
        pattern: Glob of model names.
        revision: Branch, tag or commit; by default the main branch.
        artifacts: Folder of the store; see `runtime.artifacts.default_root`.
        allow_code: Bring TorchScript and pt2 artifacts, too. They are programs: only from people you trust.

    Raises:
        OptionError: No repository or revision can be named so.
        HubError: The repository is unreachable, unknown, gated, or has no such revision.
        ArtifactNotFoundError: It has no such model.
        ManifestError, ArtifactCorruptError: What it holds is damaged; nothing of that model is published.
        StoreError: The store cannot be written.
    """
    store = store_to_fill(artifacts)
    snapshot = take(parse_address(repository, revision))
    return [pull_model(store, snapshot, model, allow_code) for model in snapshot.matching(pattern)]


def store_to_fill(artifacts: str | os.PathLike[str] | None) -> Store:
    """Return the store that a pull writes.

    Raises:
        OptionError: It is no folder but a repository of the hub.
    """
    if address := named_address(artifacts):
        named = f"{ENVIRONMENT_VARIABLE}={address}" if artifacts is None else str(address)
        raise OptionError(
            f"{named} is a repository of the Hugging Face hub, and a pull needs a folder to fill: pass --artifacts DIR "
            "(in Python, artifacts=DIR)."
        )
    return open_store(artifacts)


def pull_model(store: Store, snapshot: Snapshot, model: str, allow_code: bool = False) -> Pulled:
    """Bring one model of a repository into the store; see `pull` for what it may raise."""
    with workspace(store, model) as space:
        manifest = snapshot.read(model, _downloads(store, snapshot, model))
        wanted = [a for a in manifest.artifacts if allow_code or a.key.format in DATA]
        left_out = tuple(a.key.describe() for a in manifest.artifacts if a not in wanted)
        fetched, changed = install(space, snapshot, wanted) if wanted else (0, False)
        forget_downloads(store, snapshot, model)
        return Pulled(model, snapshot.commit, tuple(a.key.describe() for a in wanted), left_out, fetched, changed)


def install(
    space: Workspace, snapshot: Snapshot, artifacts: Sequence[Artifact], elsewhere: Iterable[Path] = ()
) -> tuple[int, bool]:
    """Publish artifacts of a repository in the workspace; return the bytes fetched, and whether the manifest changed.

    A file that lies in one of the folders `elsewhere` is copied, not fetched.
    """
    known = space.store.read(space.model)
    merged = merge(known, artifacts, str(snapshot.address))
    missing = [file for file in files_of(artifacts) if file_problem(space.published / file.name, file, full=True)]
    to_fetch = [file for file in missing if not _copied(file, space.staged, elsewhere)]
    _require_room(space.store.root, sum(file.bytes for file in to_fetch))
    snapshot.check(space.model, to_fetch)
    folder = _downloads(space.store, snapshot, space.model)
    fetched = [snapshot.fetch(space.model, file, folder) for file in to_fetch]
    for path in fetched:
        path.replace(space.staged / path.name)
    changed = merged.to_text() != known.to_text()
    if changed or missing:
        space.stage(list(artifacts))
        space.publish(*artifacts)
    return sum(file.bytes for file in to_fetch), changed


def _copied(file: StoredFile, folder: Path, elsewhere: Iterable[Path]) -> bool:
    target = folder / file.name
    for source in elsewhere:
        if file_problem(source / file.name, file) is None:
            shutil.copyfile(source / file.name, target)
            if file_problem(target, file, full=True) is None:
                return True
            target.unlink()
    return False


def _require_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StoreError(
            f"{root} has {free / 1e9:.2f} GB free, and {needed / 1e9:.2f} GB would be fetched. Nothing was. "
            "Free space, name fewer models, or choose another folder with --artifacts or BACKBONE_ARTIFACTS."
        )


def _downloads(store: Store, snapshot: Snapshot, model: str) -> Path:
    """Return the folder that outlives an interrupted pull, so that the next one goes on: one per model and repository.

    The client of the hub writes there, too. It does not take up what a killed process left under a name of its own.
    """
    folder = downloads_of(store, model) / snapshot.address.folder
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.rglob("*.????????.incomplete"):
        rest.unlink()
    return folder


def forget_downloads(store: Store, snapshot: Snapshot, model: str) -> None:
    """Remove what was kept of a model's downloads in case the pull would be interrupted."""
    folder = _downloads(store, snapshot, model)
    shutil.rmtree(folder, ignore_errors=True)
    remove_if_empty(folder.parent)  # but for what was fetched from another repository, or of another model
