"""From undecoded tiles to model input, in the threads beside inference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.embedding.batch import Batch, Group, Unreadable
from runtime.embedding.decode import decode
from runtime.embedding.tile import Pixels, Tile
from runtime.errors import UnreadableImageError

# The shorter side is resized to the model's: a hair of an image would become a picture of gigabytes.
LONGEST_TO_SHORTEST = 50


@dataclass(frozen=True)
class Preparation:
    """Makes batches of groups; called from several threads at once.

    `preprocess` is the backbone's: model input [1, ...] for one image [H, W, 3].
    """

    preprocess: Callable[[Pixels], NDArray[Any]]

    def __call__(self, group: Group) -> Batch:
        """Return the group's tiles as model input; those that cannot be read are named."""
        images: NDArray[Any] | None = None
        places: list[int] = []
        unreadable: list[Unreadable] = []
        for place, tile in enumerate(group.tiles):
            try:
                image = self.preprocess(_pixels(tile))[0]
            except UnreadableImageError as error:
                unreadable.append(Unreadable(tile.id, str(error)))
                continue
            if images is None:
                images = np.empty((len(group.tiles), *image.shape), image.dtype)
            images[len(places)] = image
            places.append(place)
        return Batch(group, tuple(places), None if images is None else images[: len(places)], tuple(unreadable))


def _pixels(tile: Tile) -> Pixels:
    pixels = decode(tile)
    height, width = pixels.shape[:2]
    if max(height, width) > LONGEST_TO_SHORTEST * min(height, width):
        raise UnreadableImageError(
            f"it is {width} x {height} pixels: more than {LONGEST_TO_SHORTEST} times as long as wide"
        )
    return pixels
