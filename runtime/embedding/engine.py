"""Ranges of a source through one loaded backbone. One machine runs it once; a cluster, once per worker."""

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backbone import Backbone
from runtime.embedding.batch import Batch, Rows
from runtime.embedding.parts import Range
from runtime.embedding.pipeline import in_order
from runtime.embedding.preparation import Preparation
from runtime.embedding.reading import groups
from runtime.embedding.sources import Source
from runtime.errors import OptionError
from runtime.machine import cpu_count

# More threads than these do not decode faster: Python's part of the work is done by one at a time.
MOST_WORKERS = 16


@dataclass(frozen=True)
class Pace:
    """How much is done at once.

    Attributes:
        batch_size: Tiles that the backbone is given at once.
        workers: Threads that decode and preprocess.
    """

    batch_size: int
    workers: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise OptionError(f"{name}={value!r} must be an int of at least 1.")

    @property
    def ahead(self) -> int:
        """Batches that lie ready or are in the making: each worker at one, and two to draw from."""
        return self.workers + 2


def pace(device: str, batch_size: int | None = None, workers: int | None = None) -> Pace:
    """Return what was asked for, and what suits the device where nothing was."""
    return Pace(
        batch_size=(32 if device == "cpu" else 128) if batch_size is None else batch_size,
        workers=min(cpu_count(), MOST_WORKERS) if workers is None else workers,
    )


def embed_ranges(
    backbone: Backbone, source: Source, ranges: Iterable[Range], pace: Pace
) -> Generator[Rows, None, None]:
    """Yield the rows of the ranges, batch by batch, in order; the next batches are made ready meanwhile.

    Raises:
        InputError: The input cannot be read on.
        DeviceError: A batch could not be run.
    """
    waiting = groups(source, ranges, pace.batch_size)
    prepare = Preparation(backbone.preprocess)
    batches = in_order(prepare, waiting, workers=pace.workers, ahead=pace.ahead)
    with closing(batches), closing(prepare):
        asked = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - asked
            yield _rows(batch, run(backbone, batch.images), waited)
            asked = time.perf_counter()


def run(backbone: Backbone, images: NDArray[Any] | None) -> tuple[NDArray[Any], ...]:
    """Return the backbone's outputs for model input, one array for each; none for no images."""
    if images is None:
        return ()
    outputs = backbone(images)
    return tuple(outputs) if isinstance(outputs, list) else (outputs,)


def probe(backbone: Backbone) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each output for one image, after running it: what cannot run says so before any reading.

    Raises:
        InputError: The backbone takes volumes, or its publisher declares no normalisation.
    """
    blank = np.zeros((64, 64, 3), np.uint8)
    return tuple(output.shape[1:] for output in run(backbone, backbone.preprocess(blank)))


def _rows(batch: Batch, outputs: tuple[NDArray[Any], ...], waited: float) -> Rows:
    """Return what is kept of a batch: not its images, which would fill the memory."""
    return Rows(batch.ids, outputs, batch.coordinates, batch.unreadable, batch.place, waited)
