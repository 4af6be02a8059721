"""A run on a Ray cluster: Ray Data hands ranges of the input to actors, restarts those that die, and tells how it goes.

The driver holds the output folder and decides what is to do; an actor embeds a range and publishes its parts there.
What is lost with a worker is done again by another: see `worker`.
"""

import contextlib
import pickle
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime import registry
from runtime.backbone import Backbone
from runtime.embedding import folder as folders
from runtime.embedding.actors import Actors, decide, placed
from runtime.embedding.connection import connected, nodes, quiet, ray_errors
from runtime.embedding.engine import Pace, pace
from runtime.embedding.opening import Task, Wish, opened, reporter
from runtime.embedding.parts import Range, missing, split
from runtime.embedding.served import Served
from runtime.embedding.sources import Source
from runtime.embedding.summary import Summary, Tally, summary
from runtime.embedding.worker import Job, Outcome, Worker, first_look
from runtime.errors import BackboneError, ClusterError, OptionError
from runtime.request import Request, make_request

# Ray Data keeps books on every block; ranges beyond these share one, and are then done one after the other.
MOST_BLOCKS = 20_000
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Cluster:
    """What was asked of a cluster; `None` for what suits it.

    Attributes:
        address: `host:port` of its head, `auto` for the one that runs here; `None` for that, or else one of this
            machine alone that ends with the run.
        actors: How many.
        cpus: Of each actor.
        batch_size, workers: As on one machine, in each actor.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int | None = None
    batch_size: int | None = None
    workers: int | None = None


def check_engine(engine: str, out: str | Path | None, cluster: dict[str, Any]) -> None:
    """Raise unless an engine exists and what was asked of a cluster goes with it.

    Raises:
        OptionError: It does not.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r} is none of {', '.join(map(repr, ENGINES))}.")
    alien = [name for name, value in cluster.items() if value is not None]
    if engine == "local" and alien:
        raise OptionError(f"{', '.join(alien)}: only with engine='ray'.")
    if engine == "ray" and out is None:
        raise OptionError("engine='ray' writes to a folder that all its workers share: name one with out=.")


def request_of(model: str | Backbone, options: Mapping[str, Any]) -> Request:
    """Return the request that each worker will serve.

    Raises:
        UnknownModelError, OptionError: As `load_model`; or the model is loaded already.
    """
    if not isinstance(model, str):
        raise OptionError(
            f"engine='ray' loads the model in each of its workers: give its name, {model.name!r}, and the keywords of "
            "load_model, not a loaded backbone."
        )
    given = {name: value for name, value in options.items() if value is not None and name != "model_kwargs"}
    return make_request(registry.find(model), options.get("model_kwargs"), given)


def embed_on_cluster(
    request: Request, source: Source, wish: Wish, cluster: Cluster, progress: Callable[[int, int | None], None]
) -> Summary:
    """Embed a source on a Ray cluster, as `runtime.embed` does on one machine.

    Raises:
        ClusterError: There is none, it has no room, or workers died of a range again and again.
        BackboneError: What went wrong in a worker, as on one machine.
    """
    with connected(cluster.address), ray_errors():
        actors = decide(nodes(), request, cluster.actors, cluster.cpus)
        request = placed(request, actors)
        served = ask_a_worker(request, actors)
        speed = pace(served.info["device"], cluster.batch_size, cluster.workers or actors.cpus)
        with opened(wish, served, source, speed) as task:
            tally, seconds = _run(request, source, task, (speed, actors), progress)
            _check_complete(task)
            return summary(wish.folder, served, source, tally, seconds)


def ask_a_worker(request: Request, actors: Actors) -> Served:
    """Return what the model tells of itself where an actor would load it; the driver need not be able to.

    Raises:
        BackboneError: It cannot be loaded, or takes no pictures.
        ClusterError: The worker died of it.
    """
    import ray

    look = ray.remote(first_look).options(num_cpus=actors.cpus, num_gpus=actors.gpus, max_retries=0)
    found, warned = ray.get(look.remote(request))
    for category, message in warned:
        warnings.warn(message, category, stacklevel=2)
    if isinstance(found, BackboneError):
        raise found
    return found


def _run(
    request: Request,
    source: Source,
    task: Task,
    how: tuple[Pace, Actors],
    progress: Callable[[int, int | None], None],
) -> tuple[Tally, float]:
    (speed, actors), ranges = how, tuple(split(task.ranges, task.part_tiles))
    tally, started, report = Tally(), time.perf_counter(), reporter(task, progress)
    with folders.staged(task.output.folder) as staging:
        output = replace(task.output, staging=staging)
        job = Job(request, source, ranges, speed, output, staging, task.part_tiles, _witness(source, ranges))
        with contextlib.closing(outcomes(job, actors)) as coming:
            for outcome in coming:
                if outcome.error is not None:
                    raise outcome.error
                tally.tiles += outcome.tiles
                tally.waited += outcome.waited / actors.number
                report(tally.tiles)
    return tally, time.perf_counter() - started


def outcomes(job: Job, actors: Actors) -> Generator[Outcome, None, None]:
    """Yield the outcome of each range of the job as it comes. When the caller stops, the actors do."""
    import ray
    import ray.data

    if not job.ranges:
        return
    blocks = min(len(job.ranges), MOST_BLOCKS)
    with quiet():
        numbers = ray.data.from_items([{"range": n} for n in range(len(job.ranges))], override_num_blocks=blocks)
        numbers.context.enable_progress_bars = False
        # One at a time: what waits behind a range would wait for a dead actor's return, too.
        numbers.context.max_tasks_in_flight_per_actor = 1
        done = numbers.map_batches(
            Worker,
            fn_constructor_args=(ray.put(job),),
            batch_size=1,
            concurrency=min(actors.number, blocks),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
        )
        # Nothing fetched ahead: an outcome would wait for the next one.
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(pickle.loads, batch["outcome"])


def _witness(source: Source, ranges: tuple[Range, ...]) -> Path | None:
    """Return a file of the input that this machine sees; `None` where tiles are no files."""
    first = next(source.tiles(ranges[0].piece, ranges[0].start), None) if ranges else None
    image = None if first is None else first.image
    return image if isinstance(image, Path) and image.exists() else None


def _check_complete(task: Task) -> None:
    left = missing((one.piece for one in task.ranges), folders.parts(task.output.folder))
    if left:
        raise ClusterError(
            f"{len(left)} ranges of tiles are not in {task.output.folder} though Ray reported them done, the first of "
            f"{left[0].piece.name!r} from {left[0].start}. Run the same command with --resume."
        )
