"""Pixels in .npy files: [N, H, W, 3] of uint8."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.embedding.sources.damage import check_some_left
from runtime.embedding.sources.listing import Listing
from runtime.embedding.tile import Piece, Pixels, Tile
from runtime.errors import InputError, UnreadableImageError

# Images read through one memory map: pages of a map that lives on count as the process's memory.
_IMAGES = 256


@dataclass(frozen=True)
class Npy:
    """Arrays, one piece each. Ids are row numbers; of several arrays, behind the file's name.

    Attributes:
        root: The folder that the names are relative to.
        names: The files.
        sizes: Of each, in words.
        shapes: Of each array, by name.
        damaged: Those that are none, and why. Each is one tile, unreadable and called as the file.
        ignored: How many other files lay beside them, by suffix.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    damaged: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name, with their images."""
        counts = [1 if name in self.damaged else self.shapes[name][0] for name in self.names]
        stamps = [
            str(list(self.shapes.get(name, ())) or size) for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return [Piece(*one) for one in zip(self.names, counts, stamps, strict=True)]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield copies of the images, so that no map stays open for them."""
        if piece.name in self.damaged:
            yield Tile(piece.name, UnreadableImageError(self.damaged[piece.name]))
            return
        prefix = f"{piece.name}/" if len(self.names) > 1 else ""
        count = self.shapes[piece.name][0]
        for first in range(start, count, _IMAGES):
            images = _map(self.root / piece.name)
            if images.shape != self.shapes[piece.name]:
                raise InputError(f"{self.root / piece.name} has changed since it was listed.")
            for row in range(first, min(first + _IMAGES, count)):
                yield Tile(f"{prefix}{row}", np.array(images[row], order="C"))

    def fingerprint(self) -> str:
        """Return a hash of the names."""
        return f"npy-{hashlib.sha256(repr(self.names).encode()).hexdigest()}"


def read_npy(listing: Listing) -> Npy:
    """Return the arrays of `listing`.

    Raises:
        InputError: All are damaged, or one is of another shape or type.
    """
    names, shapes, damaged = listing.names.to_pylist(), {}, {}
    for name in names:
        try:
            shapes[name] = _map(listing.root / name).shape
        except UnreadableImageError as error:
            damaged[name] = str(error)
    check_some_left(listing.root, names, damaged)
    return Npy(listing.root, tuple(names), listing.sizes(), shapes, damaged, listing.ignored)


def _map(path: Path) -> Pixels:
    try:
        array: Pixels = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error}") from error
    except (ValueError, EOFError) as error:
        raise UnreadableImageError(f"is no readable .npy array: {error}") from error
    if array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8 and array.size:
        return array
    raise InputError(
        f"{path} is {array.dtype} {list(array.shape)}; understood are pixels, uint8 [N, H, W, 3]. "
        "Transpose it with array.transpose(0, 2, 3, 1) where channels come first; scale other types to 0 to 255."
    )
