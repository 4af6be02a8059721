"""The store on disk: which artifacts exist, what they are, where their files lie. Standard library only.

::

    <root>/<model name>/manifest.json               what is published; nothing else is ever opened
                        <variant>.<target>.<precision>[.uint8].<hash>.onnx | .pt2
                        <variant>.<precision>.<hash>.torchscript
                        weights.<hash>.data         tensors, shared by every graph of the model

File names carry the hash of their content, so publishing never changes a file that a manifest lists.
"""

import functools
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ArtifactCorruptError, ManifestError, OptionError, StoreError
from runtime.machine import user_cache
from runtime.manifest import Artifact, Manifest, StoredFile, rebuild
from runtime.sharing.address import Address, is_address, parse_address

MANIFEST = "manifest.json"
# Inside the store, beside the models: what is being built.
STAGING = ".staging"
# And what is being pulled, for the next pull to go on with.
DOWNLOADS = ".downloads"
ENVIRONMENT_VARIABLE = "BACKBONE_ARTIFACTS"
# What a build writes. Nothing else that lies in a model's folder is ever taken for a leftover.
OURS = re.compile(r"(weights\.[0-9a-f]{12}\.data|.+\.[0-9a-f]{12}\.(onnx|pt2|torchscript)|manifest\.json)(\.part)?")


@dataclass(frozen=True)
class Store:
    """A folder of artifacts, for reading."""

    root: Path

    def folder(self, model: str) -> Path:
        """Return the folder of one model."""
        return self.root / model

    def models(self) -> list[str]:
        """Return the models that have a manifest here, sorted; none where the folder is missing.

        Raises:
            StoreError: The folder cannot be read.
        """

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise StoreError(f"{error.filename} cannot be read: {error.strerror}. Mend its permissions.") from error

        found = []
        for folder, below, files in os.walk(self.root, onerror=refuse):
            below[:] = [name for name in below if not name.startswith(".")]  # locks and unfinished builds
            if MANIFEST in files and Path(folder) != self.root:
                found.append(Path(folder).relative_to(self.root).as_posix())
        return sorted(found)

    def problems(self, manifest: Manifest, *, full: bool = False) -> dict[StoredFile, str]:
        """Return what is wrong with files that a manifest lists, each looked at once, however many artifacts share it.

        Args:
            manifest: Of one of this store's models.
            full: Compare SHA-256, not sizes alone.
        """
        folder = self.folder(manifest.model)
        files = dict.fromkeys(file for artifact in manifest.artifacts for file in artifact.files)
        found = {file: file_problem(folder / file.name, file, full) for file in files}
        return {file: problem for file, problem in found.items() if problem}

    def unlisted(self, manifest: Manifest) -> list[Path]:
        """Return the files of ours in a model's folder that its manifest does not list: replaced ones, leftovers."""
        folder = self.folder(manifest.model)
        listed = {file.name for artifact in manifest.artifacts for file in artifact.files} | {MANIFEST}
        paths = folder.iterdir() if folder.is_dir() else ()
        return sorted(
            path for path in paths if path.is_file() and OURS.fullmatch(path.name) and path.name not in listed
        )

    def unfinished(self) -> list[Path]:
        """Return the staging folders: of builds that are going on, or that died."""
        return _folders(self.root / STAGING)

    def downloads(self) -> list[Path]:
        """Return the folders of downloads: of pulls that are going on, or that were given up."""
        return _folders(self.root / DOWNLOADS)

    def read(self, model: str) -> Manifest:
        """Return what is published of `model`; an empty manifest when nothing is.

        Raises:
            ManifestError: The manifest is invalid or from a newer release.
        """
        path = self.folder(model) / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return Manifest(model)
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path} cannot be read: {error}. {rebuild(path)}") from error
        manifest = Manifest.from_text(text, path)
        if manifest.model != model:
            raise ManifestError(f"{path} is the manifest of {manifest.model!r}, not of {model!r}. {rebuild(path)}")
        return manifest

    def check(self, model: str, artifact: Artifact, *, full: bool = False) -> list[Path]:
        """Return the artifact's files, graph first, after comparing their sizes (`full`: their SHA-256 too).

        Raises:
            ArtifactCorruptError: A file is missing, cut, altered, or not a plain file.
        """
        return [self._check_file(model, file, full) for file in artifact.files]

    def _check_file(self, model: str, file: StoredFile, full: bool) -> Path:
        path = self.folder(model) / file.name
        problem = file_problem(path, file, full)
        if problem:
            raise ArtifactCorruptError(f"{path} {problem}.")
        return path


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def file_problem(path: Path, file: StoredFile, full: bool = False) -> str | None:
    """Return what is wrong with a listed file, or `None`; with `full` its SHA-256 is compared, too."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "is not a plain file (links and folders are refused)"
        if status.st_size != file.bytes:
            return f"has {status.st_size} bytes, the manifest says {file.bytes}"
        if full and sha256_of(path) != file.sha256:
            return "has another SHA-256 than the manifest says: it was altered or the disk is failing"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing, though the manifest lists it"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint, worked out once per process: its key and its revision both ask for it."""
    facts = path.stat()
    return _digest_of(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _digest_of(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  (another size or time is another file)
    return sha256_of(path)


def default_root() -> Path:
    """Return the store used when none is named.

    The environment variable BACKBONE_ARTIFACTS, else artifacts/ of the checkout, else the user's data folder.
    """
    if os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(os.environ[ENVIRONMENT_VARIABLE]).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "exporters").is_dir():
        return checkout / "artifacts"
    import platformdirs

    return Path(platformdirs.user_data_dir("backbone-runtime", appauthor=False)) / "artifacts"


def open_store(artifacts: str | os.PathLike[str] | None) -> Store:
    """Return the store at `artifacts`, or the default one.

    Raises:
        OptionError: It is a repository of the hub, which load_model alone reads from.
    """
    if address := named_address(artifacts):
        raise OptionError(
            f"{address} is a repository of the Hugging Face hub: load_model serves from it, nothing else can use it. "
            f"Name a folder with --artifacts or {ENVIRONMENT_VARIABLE}; python -m runtime.pull {address.repo} fills it."
        )
    return Store(Path(artifacts).expanduser() if artifacts is not None else default_root())


def fetched_store(address: Address) -> Store:
    """Return the store of what this user's cache holds of a repository at a commit: load_model alone writes there."""
    return Store(repository_cache(address) / str(address.revision))


def named_address(artifacts: str | os.PathLike[str] | None) -> Address | None:
    """Return the repository of the hub that `artifacts`, or else the environment, names; `None` when it is a folder.

    Raises:
        OptionError: It starts as one, and is none.
    """
    named = artifacts if artifacts is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    return parse_address(named) if is_address(named) else None


def repository_cache(address: Address) -> Path:
    """Return the folder of this user's cache for what load_model fetched of a repository."""
    return user_cache() / "hub" / address.folder


def place(artifacts: str | os.PathLike[str] | None) -> str:
    """Return where `artifacts` are, in the words of a user."""
    return str(named_address(artifacts) or open_store(artifacts).root)
