"""From what was asked to a folder that is held and begun, and the ranges of tiles that are still to be done in it."""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.embedding import folder as folders
from runtime.embedding import maps, provenance
from runtime.embedding.engine import Pace
from runtime.embedding.maps import Layout
from runtime.embedding.output import Output, part_tiles
from runtime.embedding.parts import Range, missing, total
from runtime.embedding.record import Mode, Record
from runtime.embedding.served import Served
from runtime.embedding.sources import Source, coordinates
from runtime.embedding.table import DTYPES, Columns
from runtime.errors import DependencyError, OptionError
from runtime.machine import installed


@dataclass(frozen=True)
class Wish:
    """How the rows are to be stored.

    Attributes:
        folder: Where.
        dtype: Of the numbers.
        part_tiles: Tiles of a part; `None` for what suits their size.
        mode: What to do with what lies there.
    """

    folder: Path
    dtype: str = "float32"
    part_tiles: int | None = None
    mode: Mode = "new"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype={self.dtype!r} is none of {', '.join(map(repr, DTYPES))}.")
        if self.part_tiles is not None and (type(self.part_tiles) is not int or self.part_tiles < 1):
            raise OptionError(f"part_tiles={self.part_tiles!r} must be an int of at least 1.")


@dataclass(frozen=True)
class Task:
    """What is to be done: any worker can do any part of `ranges`, cut at multiples of `part_tiles`, into `output`.

    `done` tiles are in the folder already.
    """

    output: Output
    ranges: tuple[Range, ...]
    part_tiles: int
    done: int = 0


@contextlib.contextmanager
def opened(wish: Wish, served: Served, source: Source, pace: Pace) -> Iterator[Task]:
    """Hold the folder, begin or go on in it, and give what is left to do.

    Raises:
        OutputError: The folder holds something else, is held by another run, or cannot be written.
        InputError: The backbone cannot take pictures.
        DependencyError: A package for writing is missing.
    """
    shapes, blocks = served.shapes, served.info["out_indices"]
    _check_packages(blocks is not None)
    with folders.held(wish.folder):
        pieces = source.pieces() if blocks is None else maps.counted(source)
        layout = None if blocks is None else maps.layout(pieces, shapes, wish.dtype, pace.batch_size)
        record = Record(_asked(wish, served, source, layout), _made(served), (_run(served),))

        def prepare() -> None:
            provenance.note(wish.folder, source.pieces())
            _create_maps(wish.folder, layout, blocks)

        folders.enter(wish.folder, record, wish.mode, prepare)
        provenance.check(wish.folder, source.pieces())
        columns = Columns(0 if layout else shapes[0][0], wish.dtype, metadata(served), coordinates(source))
        tiles = part_tiles(columns, pace.batch_size, wish.part_tiles)
        parts = folders.parts(wish.folder)
        done = sum(part.stop - part.start for part in parts)
        yield Task(Output(wish.folder, columns, layout), tuple(missing(pieces, parts)), tiles, done)


def reporter(task: Task, progress: Callable[[int, int | None], None]) -> Callable[[int], None]:
    """Return what tells `progress` of a run's tiles, after those that were done before; what these are is told now."""
    to_do = total(task.ranges)
    every = None if to_do is None else task.done + to_do
    progress(task.done, every)
    return lambda tiles: progress(task.done + tiles, every)


def metadata(served: Served) -> dict[str, str]:
    """Return what a Parquet file's schema says of how its rows were made; values are JSON but for plain words."""
    made = _made(served)
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in made.items()
    }


def _asked(wish: Wish, served: Served, source: Source, layout: Layout | None) -> dict[str, Any]:
    """Return what decides the rows; another backend or device gives the same within rounding, and may go on."""
    info = served.info
    told = {name: info[name] for name in ("model", "precision", "out_indices", "weights", "source", "options")}
    sizes = {"image_size": info["image_size"], "shapes": [list(shape) for shape in served.shapes]}
    # A file of the arrays is a batch: another batch size would write into the files of other parts.
    # Nor may a piece have more or fewer tiles, or the maps of all behind it would lie elsewhere.
    files = {} if layout is None else {"batch_size": layout.batch, "rows_of_pieces": _digest(layout)}
    return {**told, **sizes, **files, "dtype": wish.dtype, "fingerprint": source.fingerprint()}


def _digest(layout: Layout) -> str:
    return hashlib.sha256(repr((sorted(layout.first.items()), layout.rows)).encode()).hexdigest()


def _made(served: Served) -> dict[str, Any]:
    """Return how the rows are made, as far as the next run may do it otherwise."""
    info = served.info
    artifact = info["artifact"]
    return {
        **{name: info[name] for name in ("model", "backend", "precision", "weights")},
        "artifact": artifact and {"key": artifact["key"], "files": artifact["files"], "source": artifact.get("source")},
        "versions": dict(served.versions),
    }


def _run(served: Served) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {name: served.info[name] for name in ("backend", "device", "precision")}
    return {"when": now, **told, "versions": dict(served.versions)}


def _create_maps(folder: Path, layout: Layout | None, blocks: Sequence[int]) -> None:
    if layout is not None:
        maps.create(folder / folders.MAPS, layout, blocks)


def _check_packages(maps_too: bool) -> None:
    needed = ("pyarrow", "filelock", *(("zarr",) if maps_too else ()))
    if absent := [package for package in needed if not installed(package)]:
        raise DependencyError(
            f"Writing embeddings needs {', '.join(absent)}: pip install 'backbone-runtime[embed]'. "
            "runtime.embed without a folder yields them, and needs neither."
        )
