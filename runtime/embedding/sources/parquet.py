"""Images in Parquet files: bytes, the Hugging Face struct, or paths; and their ids."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.embedding.sources.columns import NUMBERS, Columns, choose_columns
from runtime.embedding.sources.damage import check_some_left, is_damage
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
        sizes: Of each, in words.
        rows: Rows of each.
        columns: What is read of them.
        damaged: Those that cannot be opened at all, and why. Each is one tile, unreadable and called as the file.
        ignored: How many other files lay beside them, by suffix.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    rows: tuple[int, ...]
    columns: Columns
    damaged: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name, with their rows."""
        found = zip(self.names, self.rows, self.sizes, strict=True)
        return [Piece(name, count, f"{size}, {count:,} rows") for name, count, size in found]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the rows of a file; row groups before `start` are not read, damaged ones are unreadable row by row."""
        path = self.root / piece.name
        if piece.name in self.damaged:
            yield Tile(piece.name, UnreadableImageError(self.damaged[piece.name]))
            return
        try:
            with _open(path) as file:
                if file.metadata.num_rows != piece.count:
                    raise InputError(f"{path} held {piece.count} rows when it was listed, and now holds others.")
                for group, first, stop in _groups(file, start):
                    yield from self._rows(file, piece.name, group, range(first, stop), start)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} cannot be read on: {error}. What was published stays: mend it and run the same command with "
                "--resume."
            ) from error

    def fingerprint(self) -> str:
        """Return a hash of the names and of the columns that are read."""
        content = repr((self.names, self.columns))
        return f"parquet-{hashlib.sha256(content.encode()).hexdigest()}"

    def _rows(self, file: Any, name: str, group: int, rows: range, start: int) -> Iterator[Tile]:
        """Yield the rows of a group from row `start` on."""
        row = max(start, rows.start)
        try:
            for first, batch in _batches(file, group, self.columns.names, (rows.start, start), _ROWS):
                yield from self._tiles(batch, name, first)
                row = first + len(batch)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            for number in range(row, rows.stop):  # their ids may be lost, too
                yield Tile(f"{name}/{number}", UnreadableImageError(f"its row group is damaged: {error}"))

    def _tiles(self, batch: pa.RecordBatch, name: str, first: int) -> Iterator[Tile]:
        folder = (self.root / name).parent
        ids = batch.column(self.columns.id) if self.columns.id else None
        for offset, value in enumerate(batch.column(self.columns.image)):
            identity = f"{name}/{first + offset}" if ids is None else str(ids[offset].as_py())
            yield Tile(identity, _image(value, folder))


def read_parquet(listing: Listing, *, image_column: str | None, id_column: str | None) -> Parquet:
    """Return the Parquet files of `listing`, every schema checked and every id unique.

    Raises:
        InputError: All files are damaged, a column does not exist or does not fit, ids are missing or come twice.
    """
    names = listing.names.to_pylist()
    columns, rows, damaged = None, [], {}
    for name in names:
        try:
            schema, count = _inspect(listing.root / name)
        except UnreadableImageError as error:
            damaged[name] = str(error)
            rows.append(1)
            continue
        here = choose_columns(schema, str(listing.root / name), image=image_column, ids=id_column)
        if columns is None:  # the first file decides for all
            columns, image_column, id_column = here, here.image, here.id or NUMBERS
        elif here != columns:
            first = next(name for name in names if name not in damaged)
            raise InputError(f"{first} and {name} in {listing.root} differ: {columns} and {here}.")
        rows.append(count)
    check_some_left(listing.root, names, damaged)
    assert columns is not None  # a listing is never empty
    found = Parquet(listing.root, tuple(names), listing.sizes(), tuple(rows), columns, damaged, listing.ignored)
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
        if not is_damage(error):
            raise InputError(f"{path} cannot be opened: {error}") from error
        raise UnreadableImageError(f"is no readable Parquet file: {error}") from error


def _groups(file: Any, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first row and the row after the last of each row group that does not lie before row `start`."""
    stop = 0
    for group in range(file.num_row_groups):
        first, stop = stop, stop + file.metadata.row_group(group).num_rows
        if stop > start:
            yield group, first, stop


def _batches(
    file: Any, group: int, columns: list[str], rows: tuple[int, int], size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches of a group, each with the number of its first row; `rows`: the group's first, the first wanted."""
    row, start = rows
    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        skipped = min(max(start - row, 0), len(batch))
        if skipped < len(batch):
            yield row + skipped, batch.slice(skipped)
        row += len(batch)


def _image(value: pa.Scalar, folder: Path) -> bytes | Path | UnreadableImageError:
    if isinstance(value, pa.StructScalar) and value.is_valid:
        value = value["bytes"] if value["bytes"].is_valid or "path" not in value else value["path"]
    try:
        image = value.as_py()
    except UnicodeDecodeError:
        return UnreadableImageError("the path in its row is not UTF-8")
    if image is None:
        return UnreadableImageError("its row holds no image (null)")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or "\0" in image:
        return UnreadableImageError(f"the path in its row is none: {image!r}")
    return folder / image


def _check_ids(found: Parquet, column: str) -> None:
    def read() -> Iterator[Batch]:
        for name in (name for name in found.names if name not in found.damaged):
            with _open(found.root / name) as file:
                for group, start, _ in _groups(file, 0):
                    for first, batch in _batches(file, group, [column], (start, 0), _IDS):
                        yield name, first, _ids(batch.column(0), f"{found.root / name}", first)

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


def _ids(column: pa.Array, place: str, first: int) -> list[str]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} has an id that is not UTF-8, {error.object!r}, within {len(column)} rows from row {first} on. "
            f"Mend it, or number the rows with id_column={NUMBERS!r}."
        ) from error
    if None in values:
        raise InputError(f"Row {first + values.index(None)} of {place} has no id (null).")
    return [str(value) for value in values]
