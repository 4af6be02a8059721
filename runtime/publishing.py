"""Writing the store: staged in a sibling folder, published by renames, the manifest last.

Killed at any instant, the store still serves what it served before: readers open only what a manifest lists, and
every file's name carries the hash of its content, so nothing listed is ever changed. Leftovers are removed by the next
build or pull of the same model, which holds the model's lock.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.artifacts import DOWNLOADS, MANIFEST, STAGING, Store, sha256_of
from runtime.errors import StoreError
from runtime.manifest import Artifact, Manifest, StoredFile

LOCKS = ".locks"


@dataclass(frozen=True)
class Workspace:
    """The published folder of one model and its staging folder, which is a store of its own.

    Attributes:
        store: What users read.
        staging: What verification reads; `load_model(artifacts=staging.root)` serves from it.
        model: Registry name.
    """

    store: Store
    staging: Store
    model: str

    @property
    def published(self) -> Path:
        """Folder of the published files."""
        return self.store.folder(self.model)

    @property
    def staged(self) -> Path:
        """Folder of the staged files."""
        return self.staging.folder(self.model)

    def stage(self, artifacts: list[Artifact]) -> None:
        """List `artifacts` in the staging manifest; published weight data that they read is made visible there."""
        for file in {file.name: file for artifact in artifacts for file in artifact.files}.values():
            if not (self.staged / file.name).exists():
                _link_or_copy(self.published / file.name, self.staged / file.name)
        (self.staged / MANIFEST).write_text(Manifest(self.model, tuple(artifacts)).to_text(), encoding="utf-8")

    def publish(self, *artifacts: Artifact) -> None:
        """Move the artifacts' new files to their place, then list them in the manifest in their predecessors' stead."""
        self.published.mkdir(parents=True, exist_ok=True)
        for file in {file.name: file for artifact in artifacts for file in artifact.files}.values():
            _put(self.staged / file.name, self.published / file.name)
        _sync(self.published)
        manifest = self.store.read(self.model).merged(artifacts)
        replace_text(self.published / MANIFEST, manifest.to_text())

    def clean(self) -> None:
        """Remove the files that no artifact lists: replaced ones, and leftovers of a killed build."""
        for path in self.store.unlisted(self.store.read(self.model)):
            path.unlink()


@contextlib.contextmanager
def workspace(store: Store, model: str) -> Iterator[Workspace]:
    """Hold the model's lock and give an empty staging folder; both are gone afterwards.

    Raises:
        StoreError: The folder cannot be written, or the disk is full.
    """
    staging = staging_of(store, model)
    with store_errors(store.root), lock_of(store, model):
        shutil.rmtree(staging, ignore_errors=True)
        space = Workspace(store, Store(staging), model)
        space.staged.mkdir(parents=True)
        space.clean()
        try:
            yield space
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            space.clean()
            remove_if_empty(space.published)


def lock_of(store: Store, model: str) -> FileLock:
    """Return the lock that whoever changes a model's folder holds."""
    path = _lock_path(store, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def is_locked(store: Store, model: str) -> bool:
    """Return whether somebody is changing the model's folder now."""
    path = _lock_path(store, model)
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a store that can only be read: it cannot be asked, and removing will say so
        return False


def _lock_path(store: Store, model: str) -> Path:
    return store.root / LOCKS / f"{staging_of(store, model).name}.lock"


def unfinished(store: Store, model: str) -> bool:
    """Return whether a build of the model is going on, or died: the next one has to clean up."""
    return staging_of(store, model).exists()


def staging_of(store: Store, model: str) -> Path:
    """Return the staging folder of a model's builds."""
    return store.root / STAGING / model.replace("/", "--")


def downloads_of(store: Store, model: str) -> Path:
    """Return the folder of what pulls of a model fetched and have not published yet."""
    return store.root / DOWNLOADS / model.replace("/", "--")


@contextlib.contextmanager
def store_errors(root: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"{root} cannot be written: {reason}{where}. What was published before is untouched. Free space, mend the "
            "permissions, or choose another folder with --artifacts or BACKBONE_ARTIFACTS."
        ) from error


def stored_file(path: Path, known: Manifest) -> StoredFile:
    """Return the manifest line of a file; a listed file is not read again."""
    for artifact in known.artifacts:
        for file in artifact.files:
            if file.name == path.name:
                return file
    return StoredFile(path.name, path.stat().st_size, sha256_of(path))


def _put(source: Path, target: Path) -> None:
    """Publish a staged file; it stays staged, too, for another format may read the same weight data.

    A target that is there already either is this very file or has the same name and damaged content.
    """
    if target.exists() and target.samefile(source):
        return
    part = target.with_name(target.name + ".part")
    _sync(source)
    _link_or_copy(source, part)
    part.replace(target)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second place for the length of a build; afterwards one is left, for onnx refuses hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)
        _sync(target)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole: whoever reads it sees the old text or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_if_empty(folder: Path) -> None:
    """Remove a model's folder, and its publisher's, unless something is in them."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
