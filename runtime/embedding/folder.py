"""An output folder on disk: held by one run at a time, begun or gone on with, never half published.

::

    <out>/_embed.json                          what it was begun with, and by which runs it was gone on with
          _input.json                          sizes and shapes of the input files, see `provenance`
          part-<piece>-<start>-<stop>.parquet  the rows of these tiles of a piece
          _unreadable/part-...parquet          which of these tiles could not be read, and why
          _maps.zarr                           feature maps, with out_indices
          .run-<token>                         what the workers of a cluster have not yet published

A part is published by a rename, after all that belongs to it. What no part covers is not there: killed at any instant,
the next run does it again. Names that begin with an underscore or a dot are no part of a Parquet dataset.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from runtime.embedding.parts import Part
from runtime.embedding.record import Found, Mode, Record, decide
from runtime.errors import DependencyError, OutputError

RECORD = "_embed.json"
INPUT = "_input.json"
UNREADABLE = "_unreadable"
MAPS = "_maps.zarr"
LOCK = ".lock"
_STAGING, _GONE = ".run-", ".gone-"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder and hold it: no other run may write to it meanwhile.

    Raises:
        OutputError: Another run holds it, or it cannot be written.
        DependencyError: filelock is missing.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise DependencyError("Writing needs filelock: pip install 'backbone-runtime[embed]'.") from error
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"Another run is writing to {folder}. Wait until it has ended, or choose another folder."
            ) from error
    try:
        yield
    finally:
        lock.release()


def enter(folder: Path, record: Record, mode: Mode, prepare: Callable[[], None]) -> None:
    """Begin in a folder that is held, or go on; `prepare` makes what a folder has from its beginning.

    Raises:
        OutputError: See `record.decide`; or it cannot be written.
    """
    with output_errors(folder):
        _fence(folder)
        found = _look(folder, mode)
        if decide(folder, found, record, mode) == "begin":
            _empty(folder)
            prepare()
        else:
            _clean(folder)
            record = found.record.followed_by(record) if found.record else record
        publish(folder / RECORD, lambda file: file.write(record.to_text().encode()))


def parts(folder: Path) -> list[Part]:
    """Return what is published."""
    return sorted(part for path in folder.iterdir() if (part := Part.parse(path.name)))


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder in `folder` where the workers of this run fill their files, until the run is over.

    A worker that does not know that it is over (its driver was killed, its network is gone) finds it no more, and
    cannot publish into what another run may have begun meanwhile.
    """
    with output_errors(folder):
        staging = folder / f"{_STAGING}{secrets.token_hex(8)}"
        staging.mkdir()
    try:
        yield staging
    finally:
        _fence(folder)


def publish(path: Path, write: Callable[[IO[bytes]], Any], staging: Path | None = None) -> None:
    """Let `write` fill a file, beside `path` or in `staging`, and only then give it its name."""
    part = (staging or path.parent) / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make sure that what a file holds outlasts a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make sure that renames in a folder outlast a power cut."""
    if os.name == "posix":
        sync_file(folder)


@contextlib.contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}. {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG):
        return "Name a folder, or a place where one can be made."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = "mend the permissions"
    else:
        mend = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
    return f"The parts that were published are whole: {mend}, and run the same command with --resume."


def _look(folder: Path, mode: Mode) -> Found:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    known = (RECORD, INPUT, UNREADABLE, MAPS)
    ours = [name for name in names if Part.parse(name)]
    foreign = [name for name in names if name not in known and not Part.parse(name)]
    record = _read(folder / RECORD, mode) if RECORD in names else None
    return Found(record, len(ours), [] if RECORD in names else foreign)


def _read(path: Path, mode: Mode) -> Record | None:
    try:
        return Record.from_text(path.read_text(encoding="utf-8"), path)
    except OutputError:
        if mode == "overwrite":  # it will be gone
            return None
        raise


def _fence(folder: Path) -> None:
    """Take away where the workers of earlier runs fill their files: at one instant, then file by file."""
    for staging in folder.glob(f"{_STAGING}*"):
        staging.rename(folder / staging.name.replace(_STAGING, _GONE, 1))
    for gone in folder.glob(f"{_GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove what runs have put there, what says of which run first: the rest is then nobody's."""
    (folder / RECORD).unlink(missing_ok=True)
    (folder / INPUT).unlink(missing_ok=True)
    for part in parts(folder):
        (folder / part.name).unlink()
    for name in (UNREADABLE, MAPS):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    _clean(folder)


def _clean(folder: Path) -> None:
    """Remove what a killed run left unpublished, and what it said of tiles that were not published."""
    for left in folder.glob(".*.tmp"):
        left.unlink()
    published = {part.name for part in parts(folder)}
    if (folder / UNREADABLE).is_dir():
        for path in (folder / UNREADABLE).iterdir():
            if path.name not in published:
                path.unlink()
