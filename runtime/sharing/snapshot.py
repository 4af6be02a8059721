"""What a repository holds at one commit, and its files."""

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.artifacts import MANIFEST, file_problem
from runtime.errors import ArtifactCorruptError, ArtifactNotFoundError, HubError, ManifestError
from runtime.manifest import Manifest, StoredFile
from runtime.sharing.address import Address
from runtime.sharing.hub_errors import hub_errors
from runtime.sharing.remote_manifest import LARGEST, parse

# A model's name is a folder of the store: it must not lead out of it, nor be a hidden one.
_MODEL = re.compile(r"\w[^/\\]*(/\w[^/\\]*)*")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it; the hub knows the SHA-256 of large files only."""

    bytes: int | None
    sha256: str | None = None

    def is_not(self, file: StoredFile) -> bool:
        """Return whether this is certainly another content than a manifest lists."""
        return self.bytes not in (None, file.bytes) or self.sha256 not in (None, file.sha256)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
        address: With the commit as its revision.
        files: By path in the repository.
        private: Whether only some accounts see it.
    """

    address: Address
    files: Mapping[str, RemoteFile]
    private: bool = False

    @property
    def commit(self) -> str:
        """The commit, 40 hexadecimal digits."""
        return str(self.address.revision)

    @property
    def models(self) -> list[str]:
        """Names of the models that have a manifest, sorted."""
        folders = (path.removesuffix(f"/{MANIFEST}") for path in self.files if path.endswith(f"/{MANIFEST}"))
        return sorted(name for name in folders if _MODEL.fullmatch(name) and name.isprintable())

    def matching(self, pattern: str) -> list[str]:
        """Return the models whose names match a glob.

        Raises:
            ArtifactNotFoundError: None does.
        """
        found = fnmatch.filter(self.models, pattern)
        if not found:
            held = ", ".join(self.models) or "no artifacts at all"
            raise ArtifactNotFoundError(f"{self.address} has no model that matches {pattern!r}. It has: {held}.")
        return found

    def read(self, model: str, scratch: Path) -> Manifest:
        """Return the manifest of `model`; an empty one when the repository has none. `scratch` is a folder to use.

        Raises:
            HubError: The hub does not give it.
            ManifestError: It is damaged, from a newer release, or lists what it must not.
        """
        path = f"{model}/{MANIFEST}"
        if path not in self.files:
            return Manifest(model)
        if (self.files[path].bytes or 0) > LARGEST:
            raise ManifestError(f"{self.address}/{path} has more than {LARGEST} bytes: it is no manifest.")
        try:
            text = self.download(path, scratch).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ManifestError(f"{self.address}/{path} is not a valid manifest: {error}.") from error
        return parse(text, f"{self.address}/{path}", model)

    def check(self, model: str, files: Iterable[StoredFile]) -> None:
        """Raise ArtifactCorruptError if the hub lists a file otherwise than the manifest, before any is fetched."""
        for file in files:
            path = f"{model}/{file.name}"
            if path not in self.files:
                raise ArtifactCorruptError(f"{self.address} lacks {path}, though its manifest lists it.{_ASK}")
            if self.files[path].is_not(file):
                raise ArtifactCorruptError(f"{self.address}: {path} is not what its manifest says.{_ASK}")

    def fetch(self, model: str, file: StoredFile, folder: Path) -> Path:
        """Return a listed file, downloaded under `folder` and compared with its SHA-256; a wrong one is not kept.

        Raises:
            HubError: The hub does not give it.
            ArtifactCorruptError: It is not what the manifest lists.
        """
        path = self.download(f"{model}/{file.name}", folder)
        if problem := file_problem(path, file, full=True):
            path.unlink(missing_ok=True)
            raise ArtifactCorruptError(
                f"{self.address}: {model}/{file.name} {problem}. It was altered on its way or in the repository, and "
                "is not kept: try again; if it happens twice, ask who pushed it."
            )
        return path

    def download(self, path: str, folder: Path) -> Path:
        """Return a file of the repository, downloaded under `folder`; one that is there whole is not fetched again."""
        from huggingface_hub import hf_hub_download

        with hub_errors(self.address):
            return Path(hf_hub_download(self.address.repo, path, revision=self.commit, local_dir=folder))


_ASK = " Nothing was fetched: pull another revision, or ask who pushed it."


@contextlib.contextmanager
def _client_errors(address: Address) -> Iterator[None]:
    """Turn what a disk says while nothing of ours is on it: the client reads its token there."""
    try:
        yield
    except PermissionError as error:
        raise HubError(
            f"{address} cannot be asked for: the hub's client may not read {error.filename or 'its files'}. Mend "
            "the permissions, or name another folder with HF_HOME."
        ) from error


def take(address: Address) -> Snapshot:
    """Return what the repository holds now at `address`.

    Raises:
        HubError: It cannot be reached, does not exist, is gated, or has no such revision.
    """
    from huggingface_hub import HfApi

    with hub_errors(address), _client_errors(address):
        info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
        files = {s.rfilename: RemoteFile(s.size, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ()}
        found = replace(address, revision=info.sha)
    if not found.pinned:
        raise HubError(f"{address}: the hub names {info.sha!r} as its commit. Check HF_ENDPOINT: is that a hub?")
    return Snapshot(found, files, bool(info.private))
