"""What is read: the pieces of an input, and the tiles in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.errors import UnreadableImageError

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3]: red, green, blue."""


@dataclass(frozen=True)
class Piece:
    """A part of the input that is read in order: one Parquet file, one tar, one slide, 10,000 names of a folder."""

    name: str  # unique within the input, stable between runs, usable in a file name after quoting
    count: int | None  # tiles in it, None where only reading tells (tar)
    # What of its file decides its rows, such as its size; None where its name says all. See `provenance`.
    stamp: str | None = None


@dataclass(frozen=True)
class Tile:
    """One image of the input, undecoded where it comes from a file, and what tells it from the others."""

    id: str  # unique within the input: path relative to the folder, id column, "shard.tar/key", "slide.svs/x_y"
    image: bytes | Path | Pixels | UnreadableImageError  # an image file or its bytes; pixels; why there are none
    coordinates: Mapping[str, int | float] | None = None  # of a slide: x, y, size (level-0 pixels), mpp
