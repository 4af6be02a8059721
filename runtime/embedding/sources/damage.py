"""Damage and trouble told apart: a damaged file stays so, and is listed; a disk that is gone may come back."""

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import InputError

# What the readers raise of damaged bytes. OSError, too: see `is_damage`.
RAISED = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


def is_damage(error: BaseException) -> bool:
    """Return whether an error of reading tells of the file's bytes, not of the disk or the network.

    What the system reports has a number; gzip, bz2 and pyarrow raise OSError for damaged bytes without one.
    """
    return not isinstance(error, MemoryError) and (not isinstance(error, OSError) or error.errno is None)


def check_opens(path: Path) -> None:
    """Raise if the system does not open a file, where a reader of ours does not say so.

    Raises:
        InputError: It does not.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}. What was published stays: mend it and run the same command "
            "with --resume."
        ) from error


def check_some_left(root: Path, names: Sequence[str], damaged: dict[str, str]) -> None:
    """Raise if all files are damaged: then nothing would be embedded.

    Raises:
        InputError: They are; the message has the first reasons.
    """
    if len(damaged) < len(names):
        return
    some = "; ".join(f"{root / name} {reason}" for name, reason in list(damaged.items())[:3])
    more = f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    raise InputError(f"{some}{more}. Copy or write it anew.")
