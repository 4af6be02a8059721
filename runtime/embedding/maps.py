"""Feature maps as Zarr arrays: one [N, C, h, w] for each, a file for each batch, a chunk for each tile.

Every tile has its row beforehand: those of a piece follow each other, and each piece begins with a file of its own. So
no two parts ever write to one file, and writing a part again writes the same. Rows of no readable tile are NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.embedding.batch import Rows
from runtime.embedding.folder import sync_file, sync_folder
from runtime.embedding.parts import key_of
from runtime.embedding.sources import Source
from runtime.embedding.table import cast
from runtime.embedding.tile import Piece


@dataclass(frozen=True)
class Layout:
    """Where the maps of each tile lie.

    Attributes:
        shapes: [C, h, w] of each map.
        dtype: `float32` or `float16`.
        batch: Rows of a file.
        first: The first row of each piece, by `key_of`.
        rows: Of each array.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    batch: int
    first: Mapping[str, int]
    rows: int


def layout(pieces: Sequence[Piece], shapes: tuple[tuple[int, ...], ...], dtype: str, batch: int) -> Layout:
    """Return where the maps of each tile of `pieces`, whose counts are known, will lie."""
    first, row = {}, 0
    for piece in pieces:
        first[key_of(piece)] = row
        row += -(-(piece.count or 0) // batch) * batch
    return Layout(shapes, dtype, batch, first, row)


def counted(source: Source) -> list[Piece]:
    """Return the pieces of a source with their counts; where only reading tells, it is read."""
    return [
        Piece(piece.name, sum(1 for _ in source.tiles(piece))) if piece.count is None else piece
        for piece in source.pieces()
    ]


def create(path: Path, layout: Layout, blocks: Sequence[int]) -> None:
    """Make the arrays, one for each of `blocks`, empty."""
    import zarr

    group = zarr.create_group(path, overwrite=True)
    for number, (shape, block) in enumerate(zip(layout.shapes, blocks, strict=True)):
        group.create_array(
            f"map_{number}",
            shape=(layout.rows, *shape),
            chunks=(1, *shape),
            shards=(layout.batch, *shape),
            dtype=layout.dtype,
            compressors=None,
            fill_value=np.nan,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"out_index": block},
            dimension_names=("tile", "channel", "y", "x"),
        )
    _sync_arrays(path)


def write(path: Path, layout: Layout, rows: Rows) -> None:
    """Write the maps of a batch: a whole file of each array."""
    import zarr

    if not rows.outputs:
        return
    group = zarr.open_group(path, mode="r+")
    begin = layout.first[key_of(rows.place.range.piece)]
    start, stop = begin + rows.place.start, begin + rows.place.stop
    for number, output in enumerate(rows.outputs):
        whole: NDArray[Any] = np.full((stop - start, *output.shape[1:]), np.nan, layout.dtype)
        whole[rows.place.tiles - rows.place.start] = cast(output, layout.dtype)
        array: Any = group[f"map_{number}"]
        # Else zarr reads what a killed run left there, and stumbles over what a power cut left of it.
        _file(path, number, start // layout.batch).unlink(missing_ok=True)
        array[start:stop] = whole


def places(layout: Layout, rows: Sequence[Rows]) -> NDArray[np.int64]:
    """Return the rows of the arrays in which the maps of some batches lie, one for each readable tile."""
    begin = layout.first[key_of(rows[0].place.range.piece)]
    return begin + np.concatenate([one.place.tiles for one in rows])


def sync(path: Path, layout: Layout, rows: Sequence[Rows]) -> None:
    """Make sure that the maps of a part outlast a power cut, before the part says that they are there."""
    files = {int(row) // layout.batch for row in places(layout, rows)}
    for number in range(len(layout.shapes)):
        for file in files:
            sync_file(_file(path, number, file))
        sync_folder(path / f"map_{number}")


def _sync_arrays(path: Path) -> None:
    """Make sure that what says how to read the arrays outlasts a power cut, too."""
    for file in path.rglob("zarr.json"):
        sync_file(file)
        sync_folder(file.parent)
    sync_folder(path.parent)


def _file(path: Path, number: int, file: int) -> Path:
    return path / f"map_{number}" / f"c.{file}.0.0.0"
