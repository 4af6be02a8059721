"""What passes through the layers of a graph: their inputs on calibration images, in small."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.in_memory import open_runner
from exporters.int8.layers import Group

Batch = NDArray[np.float32]

# Rows (tokens, pixels) of a layer's input that are kept, over all images: enough to tell one range from another.
ROWS = 256


@dataclass(frozen=True)
class Observation:
    """The input of a group of layers over all calibration images.

    Attributes:
        low: Smallest value of each channel, [K].
        high: Largest, [K].
        rows: Some of the rows, [R, K], among them of every image the first and the one with the largest value.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    rows: NDArray[np.float32]


def observe(model: ir.Model, groups: Sequence[Group], images: Iterable[Batch]) -> list[Observation]:
    """Return what each group reads. One image [1, C, H, W] is in memory at a time."""
    runner = open_runner(model, [group.source for group in groups])
    pictures = list(images)
    count = max(4, ROWS // len(pictures))
    seen: list[list[Observation]] = [[] for _ in groups]
    for picture in pictures:
        for group, values, kept in zip(groups, runner(picture), seen, strict=True):
            kept.append(_observe(group.rows(values), count))
    return [_join(kept) for kept in seen]


def _observe(rows: NDArray[np.float32], count: int) -> Observation:
    low, high = rows.min(0), rows.max(0)
    largest = int(np.abs(rows).max(1).argmax())
    chosen = np.unique([*np.linspace(0, len(rows) - 1, count, dtype=int), largest])
    return Observation(low, high, rows[chosen])


def _join(parts: Sequence[Observation]) -> Observation:
    low, high = np.min([p.low for p in parts], 0), np.max([p.high for p in parts], 0)
    return Observation(low, high, np.concatenate([p.rows for p in parts]))
