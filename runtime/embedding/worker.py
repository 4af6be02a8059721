"""What an actor of a cluster does: ranges of the input, each through the same engine as on one machine, into parts.

A range may be given to several workers one after the other, as they die, or even at once, where one is cut off and not
dead: all of them cut it into the same parts of the same names, and what is published already is not done again.
"""

import contextlib
import pickle
import socket
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backbone import Backbone
from runtime.embedding.batch import Rows
from runtime.embedding.engine import Pace
from runtime.embedding.opening import Task
from runtime.embedding.output import Output
from runtime.embedding.parts import Part, Range, key_of, split
from runtime.embedding.served import Served, describe
from runtime.embedding.sources import Source
from runtime.embedding.work import carry_out
from runtime.errors import BackboneError, ClusterError, InputError, OutputError
from runtime.load import serve
from runtime.request import Request

# A range whose workers died so many times kills its workers: of a tile in it, or for want of memory.
ATTEMPTS = 4


@dataclass(frozen=True)
class Job:
    """What all actors of a run share.

    Attributes:
        request: What each loads.
        witness: A file of the input, where that is made of files: a node must find it.
        output: Where all of them publish.
        staging: Its staging folder: a node must find that, too.
    """

    request: Request
    source: Source
    ranges: tuple[Range, ...]
    pace: Pace
    output: Output
    staging: Path
    part_tiles: int
    witness: Path | None


@dataclass(frozen=True)
class Outcome:
    """Of a range: how many tiles are done, the seconds that inference waited for images, what went wrong."""

    tiles: int = 0
    waited: float = 0.0
    error: BackboneError | None = None


class Worker:
    """An actor: loads the model when the first range comes. `job` is a Job, or a reference to one in Ray's store."""

    def __init__(self, job: Any) -> None:
        if not isinstance(job, Job):
            import ray

            job = ray.get(job)
        self._job: Job = job
        self._backbone: Backbone | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pickled outcome of each range whose number is in column `range`."""
        outcomes = [pickle.dumps(self._outcome(int(number))) for number in batch["range"]]
        return {"outcome": np.array(outcomes, dtype=object)}

    def _outcome(self, number: int) -> Outcome:
        try:
            note = begin(self._job, number)
            outcome = embed_range(self._loaded(), self._job, self._job.ranges[number])
            note.unlink()
            return outcome
        except Exception as error:
            return Outcome(error=told(error))

    def _loaded(self) -> Backbone:
        if self._backbone is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first worker's were shown
                self._backbone = serve(self._job.request)
        return self._backbone


def first_look(request: Request) -> tuple[Served | BackboneError, list[tuple[type[Warning], str]]]:
    """Load the model and return what it tells of itself, or what went wrong, and the warnings meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with serve(request) as backbone:
                found: Served | BackboneError = describe(backbone)
        except Exception as error:
            found = told(error)
    return found, [(one.category, str(one.message)) for one in caught if issubclass(one.category, UserWarning)]


def embed_range(backbone: Backbone, job: Job, one: Range) -> Outcome:
    """Publish the parts of a range that are not yet there.

    Raises:
        BackboneError: As on one machine; or the run is over.
    """
    rest = remaining(one, job.part_tiles, job.output.folder)
    todo = sum(r.stop - r.start for r in rest if r.stop is not None)
    tiles = 0 if one.stop is None else one.stop - one.start - todo
    tiles += sum(r.start - one.start for r in rest if r.stop is None)
    waited = 0.0

    def seen(rows: Rows) -> bool:
        nonlocal tiles, waited
        tiles += rows.place.stop - rows.place.start
        waited += rows.waited
        _check_staging(job)
        return False

    carry_out(backbone, job.source, Task(job.output, tuple(rest), job.part_tiles), job.pace, seen)
    return Outcome(tiles, waited)


def remaining(one: Range, tiles: int, folder: Path) -> list[Range]:
    """Return what an earlier worker has not published of a range that is cut into parts of `tiles`.

    Looks at the names that these parts have, not at the folder's list: that may be a hundred thousand long.
    """
    key = key_of(one.piece)

    def there(start: int, stop: int, last: bool) -> bool:
        return (folder / Part(key, start, stop, last).name).exists()

    if one.stop is not None:
        return [part for part in split([one], tiles) if not there(part.start, part.stop or 0, part.to_the_end)]
    start = one.start
    while there(start, start + tiles, False):
        start += tiles
    return [] if there(start, start + tiles, True) else [Range(one.piece, start)]


def begin(job: Job, number: int) -> Path:
    """Return a note in the staging folder that a worker is at a range; those that died at it left theirs.

    Raises:
        OutputError, InputError: This node does not see the folders that the driver sees.
        ClusterError: Too many died of it.
    """
    _check_staging(job)
    _check_witness(job)
    for attempt in range(ATTEMPTS):
        note = job.staging / f"range-{number}-{attempt}"
        with contextlib.suppress(FileExistsError):
            note.touch(exist_ok=False)
            return note
    one = job.ranges[number]
    raise ClusterError(
        f"{ATTEMPTS} workers died of tiles {one.start} to {one.stop or 'the last'} of {one.piece.name!r}: for want of "
        "memory, or of an image in it. The other parts are published: take the image out or give the workers more "
        "memory, and run the same command with --resume."
    )


def _check_witness(job: Job) -> None:
    if job.witness is not None and not job.witness.exists():
        raise InputError(
            f"{job.witness} is not there. Every node must find the input at the same path: put it on a file system "
            "that all of them mount."
        )


def told(error: Exception) -> BackboneError:
    """Return an error as the driver raises it: of our tree, pickled without trouble, saying where it happened."""
    where = f"On node {socket.gethostname()}: "
    if isinstance(error, BackboneError):
        return type(error)(f"{where}{error}")
    return ClusterError(f"{where}{''.join(traceback.format_exception(error)).strip()}")


def _check_staging(job: Job) -> None:
    if not job.staging.is_dir():
        raise OutputError(
            f"{job.staging} is not there: {job.output.folder} is another folder here, or the run is over. Every node "
            "must find the output folder at the same path: choose one on a file system that all of them mount."
        )
