"""Bringing published weights to this machine, and saying in one line why they cannot be had."""

import hashlib
import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from runtime.artifacts import checkpoint_digest
from runtime.errors import DependencyError, WeightsError
from runtime.facts import HubFile, LocalFile, Manual, Published, Unpublished, Url
from runtime.hub import fetch_from_hub, first_line

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


def fetch(source: Published, model_name: str, gated: bool) -> tuple[Path, str]:
    """Return the local file and the exact revision it is: a commit of the hub, or `sha256:` of the file.

    A file already in the cache is used as it is: no request, no token. A local file stays where it is.

    Raises:
        WeightsError: The source is gated, missing, unreachable, moved, none at all, or its checksum does not match.
            Nothing is kept then.
    """
    if isinstance(source, Unpublished):
        raise WeightsError(
            f"{model_name} has no published weights: {source.reason}. Use weights='random', or another name."
        )
    if isinstance(source, Manual):
        raise WeightsError(
            f"{model_name}: no program can fetch its weights. Get the file from {source.where}, then load it with "
            "checkpoint_path=FILE, or build with --weights random."
        )
    if isinstance(source, HubFile):
        return fetch_from_hub(source, model_name, gated)
    if isinstance(source, LocalFile):
        return _read_in_place(source, model_name)
    return _fetch_from_url(source, model_name)


def _read_in_place(source: LocalFile, model_name: str) -> tuple[Path, str]:
    path = Path(source.path).expanduser().absolute()
    try:
        return path, f"sha256:{checkpoint_digest(path)}"
    except OSError as error:
        raise WeightsError(
            f"{model_name} needs the checkpoint {path}, which cannot be read: {error.strerror or error}. "
            "Name a checkpoint file (.safetensors, or a PyTorch checkpoint) that this process may read."
        ) from error


def _fetch_from_url(source: Url, model_name: str) -> tuple[Path, str]:
    try:
        import torch
    except ImportError as error:
        raise DependencyError("Pretrained weights need torch: pip install 'backbone-runtime[eager]'.") from error
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / cache_name(source.url)
    if path.is_file():
        return path, _check(source, path, path, model_name)
    shared = folder / PurePosixPath(urlsplit(source.url).path).name
    if shared.is_file() and (proof := _proof(source, shared)):
        return shared, proof
    return path, _download(source, path, shared, model_name)


def cache_name(url: str) -> str:
    """Return the name under which the file at `url` is cached: no two URLs share one, whatever their files are called.

    torch.hub names a file by the last part of its URL alone, so that `a.org/model.pth` would be taken for
    `b.org/model.pth`.
    """
    name = PurePosixPath(urlsplit(url).path)
    return f"{name.stem}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{name.suffix}"


def _proof(source: Url, shared: Path) -> str | None:
    """Return the `sha256:` of a file that torch.hub cached, if the publisher's checksum proves it to be this one."""
    if source.sha256 is None and source.md5 is None:
        return None
    sha256, md5 = _digest(shared, "sha256"), _digest(shared, "md5")
    return f"sha256:{sha256}" if source.sha256 in (None, sha256) and source.md5 in (None, md5) else None


def _download(source: Url, path: Path, shared: Path, model_name: str) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unchecked-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            _read_whole(source.url, part)
            revision = _check(source, part, path, model_name)
            part.replace(path)
            return revision
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an open response, too
        left_alone = f" {shared} is not used: nothing proves that it is this file." if shared.is_file() else ""
        raise WeightsError(
            f"{model_name} needs {source.url}, which could not be downloaded: {first_line(error)}. "
            f"{_url_advice(error)}, or put the file at {path}, or build with --weights random.{left_alone}"
        ) from error


def _url_advice(error: Exception) -> str:
    refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 425, 429)
    return "See where its publisher has moved it" if refused else "Check the network and try again"


def _read_whole(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "backbone-runtime"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the server sent a web page instead of the file")
        shutil.copyfileobj(response, file, CHUNK)
        announced = response.headers["Content-Length"]
        if announced is not None and file.tell() != int(announced):
            raise OSError(f"the connection broke after {file.tell()} of {announced} bytes")


def _check(source: Url, path: Path, place: Path, model_name: str) -> str:
    """Return the file's `sha256:` after comparing it with the checksums its publisher states.

    `place` is where the file is kept, or would be.
    """
    for kind, stated in (("sha256", source.sha256), ("md5", source.md5)):
        if stated is not None and (found := _digest(path, kind)) != stated:
            raise WeightsError(
                f"{model_name}: {path.name} from {source.url} has {kind} {found}, its publisher states "
                f"{stated}. It was cut or altered: delete {place} if it is there, and try again."
            )
    return f"sha256:{_digest(path, 'sha256')}"


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
