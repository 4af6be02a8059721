"""Images in Parquet files: bytes, the Hugging Face struct, or paths; and their ids."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.embedding.sources.columns import NUMBERS, Columns, choose_columns
from runtime.embedding.sources.ids import Batch, find_duplicates
from runtime.embedding.sources.listing import Listing
from runtime.embedding.tile import Piece, Tile
from runtime.errors import InputError, UnreadableImageError

# Of images at once: what is held of a row group, however large that is.
_ROWS = 64
_IDS = 65536
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Parquet:
    """Parquet files, one piece each.

    Attributes:
        root: The folder that the names are relative to.
        names: The files.
        sizes: Bytes of each.
        rows: Rows of each.
        columns: What is read of them.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    columns: Columns

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name, with their rows."""
        return [Piece(name, count) for name, count in zip(self.names, self.rows, strict=True)]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the rows of a file; row groups before `start` are not read."""
        path, row = self.root / piece.name, start
        try:
            with _open(path) as file:
                if file.metadata.num_rows != piece.count:
                    raise InputError(f"{path} held {piece.count} rows when it was listed, and now holds others.")
                for tile in self._rows(file, piece.name, start):
                    yield tile
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read from row {row} on: {error}") from error

    def fingerprint(self) -> str:
        """Return a hash of names, sizes, row counts and columns."""
        content = repr((self.names, self.sizes, self.rows, self.columns))
        return f"parquet-{hashlib.sha256(content.encode()).hexdigest()}"

    def _rows(self, file: Any, name: str, start: int) -> Iterator[Tile]:
        folder = (self.root / name).parent
        for first, batch in _batches(file, self.columns.names, start, _ROWS):
            images = batch.column(self.columns.image)
            ids = batch.column(self.columns.id) if self.columns.id else None
            for offset, value in enumerate(images):
                identity = f"{name}/{first + offset}" if ids is None else str(ids[offset].as_py())
                yield Tile(identity, _image(value.as_py(), folder))


def read_parquet(listing: Listing, *, image_column: str | None, id_column: str | None) -> Parquet:
    """Return the Parquet files of `listing`, every schema checked and every id unique.

    Raises:
        InputError: A damaged file, a column that does not exist or does not fit, duplicate or missing ids.
    """
    names, sizes = listing.names.to_pylist(), listing.sizes.to_pylist()
    columns, rows = None, []
    for name in names:
        schema, count = _inspect(listing.root / name)
        here = choose_columns(schema, str(listing.root / name), image=image_column, ids=id_column)
        if columns is None:  # the first file decides for all
            columns, image_column, id_column = here, here.image, here.id or NUMBERS
        elif here != columns:
            raise InputError(f"{names[0]} and {name} in {listing.root} differ: {columns} and {here}.")
        rows.append(count)
    assert columns is not None  # a listing is never empty
    found = Parquet(listing.root, tuple(names), tuple(sizes), tuple(rows), columns)
    if columns.id is not None:
        _check_ids(found, columns.id)
    return found


def _open(path: Path) -> Any:
    # A buffer instead of whole column chunks: a row group may be larger than memory.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)


def _inspect(path: Path) -> tuple[pa.Schema, int]:
    try:
        with _open(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}") from error


def _batches(file: Any, columns: list[str], start: int, size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches from row `start` on, each with the number of its first row."""
    row = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row + count <= start:
            row += count
            continue
        for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
            skipped = min(max(start - row, 0), len(batch))
            if skipped < len(batch):
                yield row + skipped, batch.slice(skipped)
            row += len(batch)


def _image(value: Any, folder: Path) -> bytes | Path | UnreadableImageError:
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    if value is None:
        return UnreadableImageError("its row holds no image (null)")
    return value if isinstance(value, bytes) else folder / value


def _check_ids(found: Parquet, column: str) -> None:
    def read() -> Iterator[Batch]:
        for name in found.names:
            with _open(found.root / name) as file:
                for first, batch in _batches(file, [column], 0, _IDS):
                    yield name, first, _ids(batch.column(0).to_pylist(), f"{found.root / name}", first)

    try:
        twice = find_duplicates(read)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The column {column!r} of {found.root} cannot be read: {error}") from error
    if twice:
        named = "; ".join(f"{value!r} in {' and '.join(places)}" for value, places in twice.items())
        raise InputError(
            f"The ids in column {column!r} are not unique: {named}. Mend them, name another column with id_column "
            f"(--id-column), or number the rows with id_column={NUMBERS!r}."
        )


def _ids(values: list[Any], place: str, first: int) -> list[str]:
    if None in values:
        raise InputError(f"Row {first + values.index(None)} of {place} has no id (null).")
    return [str(value) for value in values]
