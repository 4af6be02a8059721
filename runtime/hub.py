"""Weights from the Hugging Face hub, through its own client."""

import hashlib
import re
from pathlib import Path

from runtime.errors import WeightsError
from runtime.facts import HubFile


def fetch_from_hub(source: HubFile, model_name: str, gated: bool) -> tuple[Path, str]:
    """Return the cached or downloaded file and its commit, or raise a WeightsError in one line.

    The first of `source.filenames` that is cached is used without any request.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for filename in source.filenames:
            cached = try_to_load_from_cache(source.repo, filename, revision=source.revision)
            if isinstance(cached, str):
                return Path(cached), _commit(Path(cached))
    except HFValidationError as error:
        raise WeightsError(
            f"{model_name} needs {source.repo!r} from the Hugging Face hub, which cannot be a repository: "
            f"{first_line(error)}. Repositories are named 'owner/name'."
        ) from error
    path = _download_from_hub(source, model_name, gated)
    _check_hub_file(path, f"{model_name}: {path.name} of {source}")
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
        except RevisionNotFoundError as error:
            raise WeightsError(f"{asked}, which has no revision {source.revision or 'main'}. See {page}.") from error
        except RepositoryNotFoundError as error:
            hint = f"Accept its terms at {page}" if gated else f"See {page}; if it is private"
            raise WeightsError(
                f"{asked}, which the hub does not show to you. {hint}, then run `hf auth login` or set HF_TOKEN."
            ) from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            cause = error.__cause__ or error
            raise WeightsError(
                f"{asked}, which is not in the cache, and the hub does not give it: {first_line(cause)}. "
                + _hub_advice(cause, source.repo, page)
            ) from error
        except EntryNotFoundError:
            tried.append(filename)
        except Exception as error:  # what the HTTP client raises has changed from release to release
            advice = _hub_advice(error, source.repo, page) if _status(error) else "Try again."
            raise WeightsError(f"{asked}, but the download failed: {first_line(error)}. {advice}") from error
    raise WeightsError(f"{asked}, which has none of {', '.join(tried)}. See {page}.")


def _hub_advice(error: BaseException, repo: str, page: str) -> str:
    status = _status(error)
    if status in (401, 403):
        return f"See {page}, and check the token with `hf auth whoami`; `hf auth login` or HF_TOKEN gives another."
    if status is not None:
        return "Try again later, or build with --weights random."
    return f"Run `hf download {repo}` where there is a network, or build with --weights random."


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _check_hub_file(path: Path, what: str) -> None:
    """Raise, and remove the file, unless it has the SHA-256 that the hub states: its client compares sizes only.

    The cache names a large file's content by the hub's ETag, its SHA-256, and links to it; where there are no links, or
    the file is small, there is nothing to compare with.
    """
    if not path.is_symlink() or not re.fullmatch("[0-9a-f]{64}", stated := path.readlink().name):
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != stated:
        for place in (path.resolve(), path.parent / path.readlink(), path):
            place.unlink(missing_ok=True)
        raise WeightsError(
            f"{what} has sha256 {found}, the hub states {stated}. It was altered on its way and is not kept: try again."
        )


def first_line(error: BaseException) -> str:
    """Return what an exception says, as part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
