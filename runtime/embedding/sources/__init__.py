"""Where images come from: a folder, Parquet, WebDataset tar files, an array, whole slides. `open_source` decides."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from runtime.embedding.tile import Piece, Tile


class Source(Protocol):
    """An input that was looked through: its parts, in a fixed order. Can be pickled, and read by several threads."""

    def pieces(self) -> Sequence[Piece]:
        """Return the parts of the input, in the same order on every run."""

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the tiles of `piece` in order, from tile number `start` on.

        Raises:
            InputError: The file cannot be read on: it is damaged, or changed since it was listed.
        """

    def fingerprint(self) -> str:
        """Return what changes when the list of tiles does: names, sizes, row counts, and how slides are cut."""


def open_source(
    path: str | Path,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    tile_size: int = 224,
    mpp: float | None = None,
    slide_mpp: float | None = None,
) -> Source:
    """Return the images at `path`, by what lies there.

    Args:
        path: A file, a folder, a glob such as `tiles/**/*.png`, or a range as in `shard-{000..010}.tar`.
        image_column: Of Parquet: the column of images (bytes, or structs of bytes and path) or of paths. Of tar files:
            the extension of the image, such as `input.png`. Default: what has a usual name or type.
        id_column: Of Parquet; `none` numbers the rows. Default: a column with a usual name such as `id`, else numbers.
        tile_size: Of slides: width and height of a tile in pixels.
        mpp: Of slides: microns per pixel of a tile. TIFF files are slides where it is given, images where not.
        slide_mpp: Of slides that do not say: microns per pixel at full resolution.

    Raises:
        InputError: Nothing there, nothing that is understood, several kinds at once, a damaged file, no such column,
            duplicate ids, an option that does not fit.
        DependencyError: A package is missing that reads this kind.
    """
