"""Pixels in .npy files: [N, H, W, 3] of uint8."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.embedding.sources.listing import Listing
from runtime.embedding.tile import Piece, Pixels, Tile
from runtime.errors import InputError

# Images read through one memory map: pages of a map that lives on count as the process's memory.
_IMAGES = 256


@dataclass(frozen=True)
class Npy:
    """Arrays, one piece each. Ids are row numbers; of several arrays, behind the file's name.

    Attributes:
        root: The folder that the names are relative to.
        shapes: Of each array, by name.
    """

    root: Path
    shapes: dict[str, tuple[int, ...]]

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name, with their images."""
        return [Piece(name, shape[0]) for name, shape in self.shapes.items()]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield copies of the images, so that no map stays open for them."""
        prefix = f"{piece.name}/" if len(self.shapes) > 1 else ""
        count = self.shapes[piece.name][0]
        for first in range(start, count, _IMAGES):
            images = _map(self.root / piece.name)
            if images.shape != self.shapes[piece.name]:
                raise InputError(f"{self.root / piece.name} has changed since it was listed.")
            for row in range(first, min(first + _IMAGES, count)):
                yield Tile(f"{prefix}{row}", np.array(images[row], order="C"))

    def fingerprint(self) -> str:
        """Return a hash of names and shapes."""
        return f"npy-{hashlib.sha256(repr(self.shapes).encode()).hexdigest()}"


def read_npy(listing: Listing) -> Npy:
    """Return the arrays of `listing`.

    Raises:
        InputError: One is damaged or of another shape or type.
    """
    return Npy(listing.root, {name: _map(listing.root / name).shape for name in listing.names.to_pylist()})


def _map(path: Path) -> Pixels:
    try:
        array: Pixels = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no readable .npy array: {error}") from error
    if array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8 and array.size:
        return array
    raise InputError(
        f"{path} is {array.dtype} {list(array.shape)}; understood are pixels, uint8 [N, H, W, 3]. "
        "Transpose it with array.transpose(0, 2, 3, 1) where channels come first; scale other types to 0 to 255."
    )
