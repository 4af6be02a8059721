"""How much faster two workers of a Ray cluster are than one: each on a core of its own.

A cluster of two nodes of one CPU each runs here, every node and all that it starts bound to its own core, as if they
were two machines. Runs of one and of two actors take turns. A run's rate is taken between its first and its last part:
how long actors take to start does not depend on how many there are, and a long run does not notice.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import build_cost
from benchmarks.embedding import image_folder
from benchmarks.figure import Figure
from benchmarks.figures import VIT_S, write_report
from benchmarks.turns import ratios
from runtime import embed
from runtime.arguments import parser_of, positive

GOAL = 1.7
BATCH = 8
STORE = 78 * 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; return 0 when the goal is reached."""
    parser = parser_of("python -m benchmarks.embedding_ray", str(__doc__).splitlines()[0])
    parser.add_argument("--model", default=VIT_S, help=f"default: {VIT_S}")
    parser.add_argument("--tiles", type=positive, default=1600, help="of a run (default: 1600)")
    parser.add_argument("--part-tiles", type=positive, default=32, help="of a part (default: 32)")
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument("--artifacts", help="folder of artifacts (default: one that is removed again)")
    parser.add_argument("--name", default="embedding-ray", help="name of the report (default: embedding-ray)")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed, and this process may use one")
    with tempfile.TemporaryDirectory(prefix="backbone-ray-") as folder:
        figure = _measure(Path(folder), cores, options)
    command = "python -m benchmarks.embedding_ray " + " ".join(sys.argv[1:] if arguments is None else arguments)
    write_report([figure], options.name, command.strip())
    print(f"{'reached' if figure.reached else 'MISSED '}  {figure.name}: {figure.measured}")
    return 0 if figure.reached else 1


def _measure(folder: Path, cores: Sequence[int], options: argparse.Namespace) -> Figure:
    artifacts = options.artifacts or str(folder / "artifacts")
    build_cost.run_build(options.model, artifacts, "--out-indices=none", "--format=onnx")
    tiles = image_folder(folder / "tiles", options.tiles)
    rates: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    with _cluster(cores) as address:
        for _ in range(options.rounds):
            for actors in rates:
                seen: list[tuple[float, int]] = []
                summary = embed(
                    options.model,
                    tiles,
                    folder / "rows",
                    engine="ray",
                    address=address,
                    actors=actors,
                    cpus_per_actor=1,
                    backend="onnx",
                    weights="random",
                    artifacts=artifacts,
                    on_fallback="error",
                    batch_size=BATCH,
                    part_tiles=options.part_tiles,
                    overwrite=True,
                    progress=lambda done, _, seen=seen: done and seen.append((time.perf_counter(), done)),
                )
                if summary.rows != options.tiles:
                    raise RuntimeError(f"{summary.rows} rows of {options.tiles} tiles")
                rates[actors].append((seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]))
                whole[actors].append(summary.seconds)
    return _figure(options, rates, whole)


@contextlib.contextmanager
def _cluster(cores: Sequence[int]) -> Iterator[str]:
    """Give the address of a cluster with a node on each of the cores; Ray's own head is on all of them."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes loopback a node's address
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else whatever runs beside it is served first
    }
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {
        "object_store_memory": STORE,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
        "num_gpus": 0,
    }
    starter: Any = Cluster  # without annotations
    made, every = starter(), os.sched_getaffinity(0)
    try:
        made.add_node(num_cpus=0, **common)
        for core in cores:
            os.sched_setaffinity(0, {core})  # what is started inherits it
            made.add_node(num_cpus=1, **common)
            os.sched_setaffinity(0, every)
        made.wait_for_nodes()
        yield made.address
    finally:
        os.sched_setaffinity(0, every)
        made.shutdown()


def _figure(options: argparse.Namespace, rates: dict[int, list[float]], whole: dict[int, list[float]]) -> Figure:
    low, middle, high = ratios(rates[1], rates[2])
    return Figure(
        name=f"{options.model} on Ray: two workers of one core each against one",
        goal=f"at least {GOAL} times the tiles per second",
        reached=middle >= GOAL,
        measured=f"{middle:.2f} times ({low:.2f} to {high:.2f} over {options.rounds} rounds of {options.tiles} tiles; "
        f"tiles/s: one {median(rates[1]):.1f}, two {median(rates[2]):.1f}; with the start of the actors "
        f"{median(whole[1]) / median(whole[2]):.2f} times)",
        data={"model": options.model, "tiles": options.tiles, "tiles_per_second": rates, "seconds": whole},
    )


if __name__ == "__main__":
    sys.exit(main())
