"""What passes through the pipeline: tiles as they are read, prepared for the backbone, embedded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.embedding.parts import Range
from runtime.embedding.tile import Tile


@dataclass(frozen=True)
class Group:
    """Tiles `start` to `start + len(tiles)` of a range's piece, undecoded. `ends` where the range ends with them."""

    range: Range
    start: int
    tiles: tuple[Tile, ...]
    ends: bool

    @property
    def stop(self) -> int:
        """The tile after its last."""
        return self.start + len(self.tiles)


@dataclass(frozen=True)
class Unreadable:
    """A tile that cannot be decoded, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """A group made ready for the backbone.

    Attributes:
        group: What it was made of.
        places: Which tiles of the group could be read.
        images: Model input, one row for each of those; `None` when there is none.
        unreadable: The other tiles.
    """

    group: Group
    places: tuple[int, ...]
    images: NDArray[Any] | None
    unreadable: tuple[Unreadable, ...]

    @property
    def place(self) -> "Place":
        """Where the tiles lie in the input."""
        tiles = self.group.start + np.array(self.places, dtype=np.int64)
        return Place(self.group.range, self.group.start, self.group.stop, self.group.ends, tiles)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the tiles that could be read."""
        return tuple(self.group.tiles[place].id for place in self.places)

    @property
    def coordinates(self) -> Mapping[str, NDArray[Any]]:
        """Of the tiles that could be read, by name; empty where the input has none."""
        if not self.group.tiles or (first := self.group.tiles[0].coordinates) is None:
            return {}
        given = [self.group.tiles[place].coordinates or {} for place in self.places]
        return {name: np.array([one[name] for one in given], dtype=coordinate_type(name)) for name in first}


def coordinate_type(name: str) -> str:
    """Return one type for all of an input: a scale may be a whole number in one slide and a fraction in the next."""
    return "int64" if name in ("x", "y", "size", "level") else "float64"


@dataclass(frozen=True)
class Rows:
    """What one batch of images gives, in the order of the input.

    Attributes:
        ids: Of the tiles that could be read.
        outputs: Their embeddings [N, D], or of each feature map [N, C, h, w], in the order that the model gives them.
        coordinates: Of slides: `x`, `y` and `size` in pixels of level 0, `mpp`, each [N]; else empty.
        unreadable: The tiles of the batch that could not be read.
        place: Where they lie in the input.
        waited: Seconds that inference waited for the batch to be read and decoded.
    """

    ids: tuple[str, ...]
    outputs: tuple[NDArray[Any], ...]
    coordinates: Mapping[str, NDArray[Any]]
    unreadable: tuple[Unreadable, ...]
    place: "Place"
    waited: float = 0.0

    @property
    def embeddings(self) -> NDArray[Any]:
        """The embeddings, [N, D] (with `out_indices` the first feature map)."""
        return self.outputs[0]


@dataclass(frozen=True)
class Place:
    """Tiles `start` to `stop` of a range's piece; `tiles` are the numbers of those that could be read."""

    range: Range
    start: int
    stop: int
    ends: bool
    tiles: NDArray[np.int64]
