"""Rows as Parquet files. pyarrow is imported where it is used: rows that are only yielded do not need it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.embedding.batch import Rows, Unreadable, coordinate_type
from runtime.errors import OutputError

Places = NDArray[np.int64] | None
"""Rows of the feature maps of a part's tiles; `None` for embeddings."""
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Columns:
    """What a part's rows hold: an embedding of `width` numbers each, or (0) where its feature maps lie.

    Attributes:
        width: Numbers of an embedding; 0 for feature maps.
        dtype: Of the numbers, `float32` or `float16`.
        metadata: What the schema says beside: model, artifact, versions.
        coordinates: What every tile has; a part without any tile has these columns, too.
    """

    width: int
    dtype: str
    metadata: Mapping[str, str]
    coordinates: tuple[str, ...] = ()


def part_table(rows: Sequence[Rows], columns: Columns, places: Places) -> Any:
    """Return the rows of a part; `places` are those of their feature maps.

    Raises:
        OutputError: A number does not fit the type asked for.
    """
    import pyarrow as pa

    made = {"id": pa.array([one for batch in rows for one in batch.ids], pa.string())}
    for name in dict.fromkeys([*columns.coordinates, *rows[0].coordinates]):
        none = np.empty(0, coordinate_type(name))
        made[name] = pa.array(np.concatenate([batch.coordinates.get(name, none) for batch in rows]))
    if places is None:
        made["embedding"] = _vectors(rows, columns)
    else:
        made["row"] = pa.array(places)
    return pa.table(made).replace_schema_metadata(dict(columns.metadata))


def unreadable_table(unreadable: Sequence[Unreadable]) -> Any:
    """Return what could not be read, and why."""
    import pyarrow as pa

    return pa.table({"id": [one.id for one in unreadable], "reason": [one.reason for one in unreadable]})


def write(table: Any, file: Any) -> None:
    """Write a table as Parquet. The first bytes of floats are alike: side by side they shrink to 85% of the whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {field.name: field.type for field in table.schema}
    split = [f"{name}.list.element" for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)]
    names = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
    pq.write_table(
        table, file, compression="zstd", use_dictionary=False, use_byte_stream_split=split, write_statistics=names
    )


def count(path: Any) -> int:
    """Return how many rows a file holds."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def cast(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers in the type asked for.

    Raises:
        OutputError: One of them is too large for it.
    """
    with np.errstate(over="ignore"):
        given = numbers.astype(dtype, copy=False)
    if given.dtype != numbers.dtype and np.isinf(given).sum() > np.isinf(numbers).sum():
        raise OutputError(
            f"A value of {np.abs(numbers[np.isfinite(numbers)]).max():.3g} does not fit {dtype}, which ends at "
            f"{np.finfo(given.dtype).max:.3g}. Begin again with dtype='float32'."
        )
    return given


def _vectors(rows: Sequence[Rows], columns: Columns) -> Any:
    import pyarrow as pa

    found = [batch.outputs[0] for batch in rows if batch.outputs]
    joined = np.concatenate(found) if found else np.empty((0, columns.width), "float32")
    flat = pa.array(cast(joined, columns.dtype).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, columns.width)
