"""From undecoded tiles to model input, in the threads beside inference."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.embedding.batch import Batch, Group, Unreadable
from runtime.embedding.decode import LargeImage, decode
from runtime.embedding.tile import Pixels, Tile
from runtime.errors import UnreadableImageError

# The shorter side is resized to the model's: a hair of an image would become a picture of gigabytes.
LONGEST_TO_SHORTEST = 50
# An image takes about 7 bytes a pixel while it is decoded and resized. Those of more pixels are left to one thread: as
# many at once as there are threads would fill the memory of a machine. One thread and not a lock, because glibc keeps
# for each thread some of what it has freed.
LARGE = 2**24


@dataclass(frozen=True)
class Preparation:
    """Makes batches of groups; called from several threads at once.

    `preprocess` is the backbone's: model input [1, ...] for one image [H, W, 3].
    """

    preprocess: Callable[[Pixels], NDArray[Any]]
    _alone: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="large"))

    def __call__(self, group: Group) -> Batch:
        """Return the group's tiles as model input; those that cannot be read are named."""
        images: NDArray[Any] | None = None
        places: list[int] = []
        unreadable: list[Unreadable] = []
        for place, tile in enumerate(group.tiles):
            try:
                image = self._image(tile)
            except UnreadableImageError as error:
                unreadable.append(Unreadable(tile.id, str(error)))
                continue
            if images is None:
                images = np.empty((len(group.tiles), *image.shape), image.dtype)
            images[len(places)] = image
            places.append(place)
        return Batch(group, tuple(places), None if images is None else images[: len(places)], tuple(unreadable))

    def close(self) -> None:
        """Wait for no large image any more; groups in the making fail."""
        self._alone.shutdown(wait=False, cancel_futures=True)

    def _image(self, tile: Tile) -> NDArray[Any]:
        try:
            return self._made(tile, LARGE)
        except LargeImage:
            return self._alone.submit(self._made, tile, None).result()

    def _made(self, tile: Tile, most: int | None) -> NDArray[Any]:
        pixels = decode(tile, most)
        _check_shape(pixels)
        made: NDArray[Any] = self.preprocess(pixels)[0]
        return made


def _check_shape(pixels: Pixels) -> None:
    height, width = pixels.shape[:2]
    if max(height, width) > LONGEST_TO_SHORTEST * min(height, width):
        raise UnreadableImageError(
            f"it is {width} x {height} pixels: more than {LONGEST_TO_SHORTEST} times as long as wide"
        )
