"""The files of a model in a repository: equal weight data of several models is one file with several names."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.serving.config import MODEL
from runtime.artifacts import sha256_of
from runtime.errors import ArtifactCorruptError
from runtime.manifest import StoredFile


@dataclass(frozen=True)
class Part:
    """A file of an artifact, and what it is called in the repository."""

    source: Path
    file: StoredFile
    name: str


@dataclass(frozen=True)
class Placed:
    """What became of a part.

    Attributes:
        path: Relative to the repository.
        how: `copied`, `linked` or `kept`.
        origin: Of a link: the file it shares its bytes with, relative to the repository.
    """

    path: str
    bytes: int
    how: str
    origin: str | None = None


def kept(version: Path, parts: Sequence[Part]) -> list[Placed] | None:
    """Return the parts if they are all there already, each with its very bytes."""
    paths = [version / MODEL / part.name for part in parts]
    if not all(_is(path, part.file) for path, part in zip(paths, parts, strict=True)):
        return None
    root = version.parent.parent
    return [Placed(str(p.relative_to(root)), part.file.bytes, "kept") for p, part in zip(paths, parts, strict=True)]


def _is(path: Path, file: StoredFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def place(part: Part, staged: Path, final: Path) -> Placed:
    """Put a part into the folder `staged`, which will become `final`; return how, told as of there.

    Raises:
        ArtifactCorruptError: The file is not what its manifest says.
    """
    repository, path = final.parent.parent.parent, staged / part.name
    where = str((final / part.name).relative_to(repository))
    if part.name != MODEL:  # a graph is small, and is this model's own
        for twin in sorted(repository.glob(f"*/*/{MODEL}/{part.name}")):
            if _is(twin, part.file) and _linked(twin, path):
                return Placed(where, part.file.bytes, "linked", str(twin.relative_to(repository)))
    shutil.copyfile(part.source, path)
    if sha256_of(path) != part.file.sha256:
        raise ArtifactCorruptError(
            f"{part.source} has another SHA-256 than the manifest says: it was altered or the disk is failing."
        )
    sync(path)
    return Placed(where, part.file.bytes, "copied")


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second place; return whether the file system can."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
