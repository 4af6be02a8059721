"""What the hub's client raises, in the words of this project."""

import contextlib
import errno
from collections.abc import Iterator

from runtime.errors import BackboneError, HubError
from runtime.hub import first_line
from runtime.sharing.address import Address

# What a disk says. Whatever else is an OSError comes from the network, or is the client's own.
_DISK = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
}


@contextlib.contextmanager
def hub_errors(address: Address) -> Iterator[None]:
    """Turn what the hub's client raises into a HubError; what the disk says passes, for the store to tell."""
    try:
        yield
    except BackboneError:
        raise
    except OSError as error:
        if error.errno in _DISK:
            raise
        raise HubError(explain(error, address)) from error
    except Exception as error:  # what the HTTP client raises has changed from release to release
        raise HubError(explain(error, address)) from error


def explain(error: BaseException, address: Address) -> str:
    """Return what went wrong with a request, and what to do, in one or two sentences."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{address.repo}"
    login = "run `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{address} is gated. Accept its terms at {page}, then {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address.repo} has no revision {address.revision or 'main'}. See {page}/branches for what it has."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{address} does not exist, or the hub does not show it to you. See {page}; if it is private, {login}."
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return f"{address} cannot be read: HF_HUB_OFFLINE is set, and this is not in the cache. Unset it once."
    return _by_status(error, address, page, login)


def _by_status(error: BaseException, address: Address, page: str, login: str) -> str:
    cause = error if _status(error) is not None else error.__cause__ or error
    status, said = _status(cause), first_line(cause)
    if status in (401, 403):
        return f"{address}: the hub refuses: {said}. See {page}, check the token with `hf auth whoami`; else {login}."
    if status == 412:
        return f"{address} was changed by somebody else in the meantime. Nothing was pushed: run the command again."
    if status is not None:
        return f"{address}: the hub answers with an error: {said}. Try again later."
    return f"{address} cannot be reached: {said}. Check the network (and HF_ENDPOINT, if it is set), then try again."


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
