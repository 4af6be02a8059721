"""Bringing published weights to this machine, and saying in one line why they cannot be had."""

import hashlib
import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from runtime.errors import DependencyError, WeightsError
from runtime.facts import HubFile, Unpublished, Url

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


def fetch(source: HubFile | Url | Unpublished, model_name: str, gated: bool) -> tuple[Path, str]:
    """Return the local file and the exact revision it is: a commit of the hub, or `sha256:` of the file.

    A file already in the cache is used as it is: no request, no token.

    Raises:
        WeightsError: The source is gated, unreachable, moved, none at all, or its checksum does not match.
    """
    if isinstance(source, Unpublished):
        raise WeightsError(
            f"{model_name} has no published weights: {source.reason}. Use weights='random', or another name."
        )
    if isinstance(source, HubFile):
        return _fetch_from_hub(source, model_name, gated)
    return _fetch_from_url(source, model_name)


def _fetch_from_hub(source: HubFile, model_name: str, gated: bool) -> tuple[Path, str]:
    from huggingface_hub import try_to_load_from_cache

    for filename in source.filenames:
        cached = try_to_load_from_cache(source.repo, filename, revision=source.revision)
        if isinstance(cached, str):
            return Path(cached), _commit(Path(cached))
    path = _download_from_hub(source, model_name, gated)
    return path, _commit(path)


def _commit(path: Path) -> str:
    # The hub's cache: models--<owner>--<name>/snapshots/<commit>/<file>.
    return path.parts[len(path.parts) - path.parts[::-1].index("snapshots")]


def _download_from_hub(source: HubFile, model_name: str, gated: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"{model_name} needs {source.repo} from the Hugging Face hub"
    page = f"https://huggingface.co/{source.repo}"
    tried: list[str] = []
    for filename in source.filenames:
        try:
            return Path(hf_hub_download(source.repo, filename, revision=source.revision))
        except GatedRepoError as error:
            raise WeightsError(
                f"{asked}, which is gated. Accept its terms at {page}, then run `hf auth login` or set HF_TOKEN."
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            hint = f"Accept its terms at {page}" if gated else f"See {page}; if it is private"
            raise WeightsError(
                f"{asked}, which the hub does not show to you. {hint}, then run `hf auth login` or set HF_TOKEN."
            ) from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            reason = _first_line(error.__cause__ or error)
            raise WeightsError(
                f"{asked}, which is not in the cache, and the hub does not give it: {reason}. "
                f"Run `hf download {source.repo}` where there is a network, or build with --weights random."
            ) from error
        except EntryNotFoundError:
            tried.append(filename)
        except Exception as error:  # what the HTTP client raises has changed from release to release
            raise WeightsError(f"{asked}, but the download failed: {_first_line(error)}. Try again.") from error
    raise WeightsError(f"{asked}, which has none of {', '.join(tried)}. See {page}.")


def _fetch_from_url(source: Url, model_name: str) -> tuple[Path, str]:
    try:
        import torch
    except ImportError as error:
        raise DependencyError("Pretrained weights need torch: pip install 'backbone-runtime[eager]'.") from error
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / source.url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(source, path, model_name)
    return path, _check(source, path, path, model_name)


def _download(source: Url, path: Path, model_name: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unchecked-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            _read_whole(source.url, part)
            _check(source, part, path, model_name)
            part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an open response, too
        raise WeightsError(
            f"{model_name} needs {source.url}, which could not be downloaded: {_first_line(error)}. Check the network, "
            f"or put the file at {path}, or build with --weights random."
        ) from error


def _read_whole(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "backbone-runtime"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file, CHUNK)
        announced = response.headers["Content-Length"]
        if announced is not None and file.tell() != int(announced):
            raise OSError(f"the connection broke after {file.tell()} of {announced} bytes")


def _check(source: Url, path: Path, place: Path, model_name: str) -> str:
    """Return the file's `sha256:` after comparing it with the checksums its publisher states.

    `place` is where the file is kept, or would be.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    for kind, stated, found in (("sha256", source.sha256, sha256), ("md5", source.md5, md5)):
        if stated is not None and found.hexdigest() != stated:
            raise WeightsError(
                f"{model_name}: {path.name} from {source.url} has {kind} {found.hexdigest()}, its publisher states "
                f"{stated}. It was cut or altered: delete {place} if it is there, and try again."
            )
    return f"sha256:{sha256.hexdigest()}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
