"""runtime.embed: a model and images to a folder of rows, or to an iterator of them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from runtime.backbone import Backbone
from runtime.embedding.batch import Rows
from runtime.embedding.cluster import Cluster, check_engine, embed_on_cluster, request_of
from runtime.embedding.engine import Pace, embed_ranges, pace
from runtime.embedding.interruption import interruptible
from runtime.embedding.opening import Task, Wish, opened, reporter
from runtime.embedding.parts import missing
from runtime.embedding.record import Mode
from runtime.embedding.served import describe
from runtime.embedding.sources import Source, open_source
from runtime.embedding.summary import Summary, Tally, summary
from runtime.embedding.work import carry_out
from runtime.errors import OptionError
from runtime.load import load_model

Progress = Callable[[int, int | None], None]
"""Told at the start and after each batch: tiles that are done, earlier runs' included, of how many (`None` where only
reading tells)."""


@overload
def embed(
    model: str | Backbone,
    images: str | Path | Source,
    out: None = None,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    tile_size: int | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    **options: Any,
) -> Iterator[Rows]: ...


@overload
def embed(
    model: str | Backbone,
    images: str | Path | Source,
    out: str | Path,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    tile_size: int | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    part_tiles: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    actors: int | None = None,
    cpus_per_actor: int | None = None,
    **options: Any,
) -> Summary: ...


def embed(
    model: str | Backbone,
    images: str | Path | Source,
    out: str | Path | None = None,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    tile_size: int | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    part_tiles: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    actors: int | None = None,
    cpus_per_actor: int | None = None,
    **options: Any,
) -> Summary | Iterator[Rows]:
    """Embed many images: write them to a folder, or yield them batch by batch.

    Reading, decoding and preprocessing go on in threads beside inference, and memory does not grow with the input.
    With `out` the folder becomes a Parquet dataset of columns `id`, the coordinates of slides, and `embedding`, a list
    of fixed size; with `out_indices` the column `row` says where the tile's maps lie in the Zarr arrays of
    `out/_maps.zarr`. What could not be read is listed in `out/_unreadable`.

    Args:
        model: Registry name, or a loaded backbone.
        images: A folder or glob of images, Parquet, tar files, an .npy array, whole slides: see `open_source`.
        out: Folder to write; without it, rows are yielded.
        batch_size: Images that the model is given at once; default 32, on GPUs 128.
        workers: Threads that decode; default one per CPU, at most 16.
        image_column: Of Parquet, the column of images or paths; of tar files, the extension of the images.
        id_column: Of Parquet; by default one with a usual name, else the rows are numbered.
        tile_size: Of slides: side of a tile in pixels; default 224.
        mpp: Of slides: microns per pixel of a tile.
        slide_mpp: Of slides that do not say: microns per pixel at full resolution.
        dtype: Of the embeddings in the folder.
        part_tiles: Tiles of a Parquet file, at most; default 8,192. A crash costs the work on one.
        resume: Go on in a folder that the same run has begun; begins it where it has not.
        overwrite: Discard what the folder holds.
        progress: Told at the start and after each batch (of a cluster: each part) how many tiles are done, those of
            earlier runs included, and how many there are.
        engine: `local`, this process; or `ray`, the actors of a Ray cluster, each with a session of its own. They
            write to `out`, which all nodes must share.
        address: Of the cluster's head, `host:port`; by default the one that runs here, else this machine alone.
        actors: How many; by default as many as fit: one per GPU, or on CPUs one per eight.
        cpus_per_actor: CPUs of an actor: threads of its session, and (at `workers`) threads that decode.
        **options: Keywords of `load_model`, such as `backend`, `precision` and `out_indices`.

    Returns:
        With `out`, a summary. Tiles that could not be read are counted in it: look at `unreadable`.
        Without, an iterator of batches: `ids`, `embeddings` [N, D] (or `outputs`, a map [N, C, h, w] each),
        `coordinates`, `unreadable`.

    Raises:
        OutputError: The folder holds something else, is held by another run, or cannot be written.
        InputError: No images there, or they cannot be read on; the backbone takes no pictures.
        ClusterError: No Ray cluster answers, it has no room, or its workers die of the same tiles again and again.
        OptionError, UnknownModelError, ...: As `load_model`.
        KeyboardInterrupt: After Ctrl-C; the batch in the making is finished and published first.
    """
    cluster = {"address": address, "actors": actors, "cpus_per_actor": cpus_per_actor}
    check_engine(engine, out, cluster)
    if isinstance(images, str | Path):
        images = images if engine == "local" else Path(images).absolute()  # workers run elsewhere
        columns = {"image_column": image_column, "id_column": id_column}
        images = open_source(images, **columns, tile_size=tile_size, mpp=mpp, slide_mpp=slide_mpp)
    if out is None:
        stored = {"resume": resume, "overwrite": overwrite, "part_tiles": part_tiles, "progress": progress}
        _refuse_without_out({**stored, "dtype": dtype != "float32"})
        backbone = _backbone(model, options)
        ranges = missing(images.pieces(), ())
        return embed_ranges(backbone, images, ranges, pace(backbone.device, batch_size, workers))
    wish = Wish(Path(out), dtype, part_tiles, _mode(resume, overwrite))
    if engine == "ray":
        _refuse_reused(options)
        wish = replace(wish, folder=wish.folder.absolute())
        asked = Cluster(address, actors, cpus_per_actor, batch_size, workers)
        return embed_on_cluster(request_of(model, options), images, wish, asked, progress or (lambda *_: None))
    backbone = _backbone(model, options)
    speed = pace(backbone.device, batch_size, workers)
    served = describe(backbone)
    with opened(wish, served, images, speed) as task:
        tally, seconds = _write(backbone, images, speed, task, progress or (lambda *_: None))
        return summary(wish.folder, served, images, tally, seconds)


def _write(backbone: Backbone, source: Source, pace: Pace, task: Task, progress: Progress) -> tuple[Tally, float]:
    tally, started, report = Tally(), time.perf_counter(), reporter(task, progress)
    with interruptible() as interrupted:

        def seen(rows: Rows) -> bool:
            tally.add(rows)
            report(tally.tiles)
            return interrupted()

        carry_out(backbone, source, task, pace, seen)
    return tally, time.perf_counter() - started


def _refuse_reused(options: dict[str, Any]) -> None:
    if options.get("reuse_outputs"):
        raise OptionError("reuse_outputs: embed keeps what the model returns until it is written. Leave it out.")


def _backbone(model: str | Backbone, options: dict[str, Any]) -> Backbone:
    _refuse_reused(options)
    if isinstance(model, str):
        return load_model(model, **options)
    if options:
        raise OptionError(
            f"{', '.join(options)}: {model.name} is loaded already. Give these keywords to load_model, or embed the "
            "model's name."
        )
    return model


def _mode(resume: bool, overwrite: bool) -> Mode:
    if resume and overwrite:
        raise OptionError("resume goes on with what the folder holds, overwrite discards it: leave one out.")
    return "resume" if resume else "overwrite" if overwrite else "new"


def _refuse_without_out(given: dict[str, Any]) -> None:
    if wrong := [name for name, value in given.items() if value]:
        raise OptionError(f"{', '.join(wrong)}: only with a folder to write to; name one with out=.")
