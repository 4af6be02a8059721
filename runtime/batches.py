"""Batch sizes: a batch of any length served in batches of a few fixed lengths, so that shapes and memory stay the same.

Pure, and alike for numpy arrays and torch tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` of a batch, run together as a batch of `size`."""

    start: int
    stop: int
    size: int


def split(count: int, sizes: Sequence[int]) -> list[Part]:
    """Return how `count` images are run: in full batches of the largest size, the rest in the next size up."""
    sizes = sorted(sizes)
    largest = sizes[-1]
    full = [Part(start, start + largest, largest) for start in range(0, count - largest + 1, largest)]
    rest = count - len(full) * largest
    if not rest:
        return full
    return [*full, Part(count - rest, count, next(size for size in sizes if size >= rest))]


def serve(images: Any, sizes: Sequence[int], run: Callable[[Any], list[Any]]) -> list[Any]:
    """Return what `run` gives for `images`, calling it with batches of `sizes` only.

    `run` may return the same memory each time: several batches are copied into new memory one after the other.
    """
    parts = split(len(images), sizes)
    if len(parts) == 1:
        return [output[: len(images)] for output in run(_padded(images, parts[0]))]
    joined: list[Any] = []
    for part in parts:
        outputs = run(_padded(images, part))
        joined = joined or [_empty(output, len(images)) for output in outputs]
        for whole, output in zip(joined, outputs, strict=True):
            whole[part.start : part.stop] = output[: part.stop - part.start]
    return joined


def _padded(images: Any, part: Part) -> Any:
    if part.stop - part.start == part.size:
        return images[part.start : part.stop]
    # Repeats of a real image, not zeros: graphs that scale by the range of the whole batch (dynamic int8) see no other.
    return images[[min(row, part.stop - 1) for row in range(part.start, part.start + part.size)]]


def _empty(output: Any, count: int) -> Any:
    shape = (count, *output.shape[1:])
    return np.empty(shape, output.dtype) if isinstance(output, np.ndarray) else output.new_empty(shape)
