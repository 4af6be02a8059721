"""How much of bare inference's throughput `runtime.embed` reaches on a folder of JPEG tiles.

Both run in one process on one loaded backbone, in turns: bare inference is the model called again and again with a
batch that lies in memory; embedding reads, decodes and preprocesses files and writes a Parquet dataset, timed from the
call to its return. The ratio is taken round by round. Models are built with random weights.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import build_cost, pictures
from benchmarks.figure import Figure
from benchmarks.figures import VIT_B, VIT_S, write_report
from benchmarks.machine_facts import machine_facts
from benchmarks.turns import ratios
from runtime import Backbone, embed, load_model
from runtime.arguments import above_zero, parser_of, positive

GOAL = 0.9
SIDE = 224
BATCH = 32


@dataclass(frozen=True)
class Turns:
    """How long and how often each side runs.

    Attributes:
        rounds: How many count, after one that does not.
        seconds: What a turn takes, about.
        workers: Threads that decode; `None` for embed's own choice.
    """

    rounds: int
    seconds: float
    workers: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; return 0 when the goal is reached for each model."""
    parser = parser_of("python -m benchmarks.embedding", str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="*", default=(VIT_S, VIT_B), help="default: a ViT-S and a ViT-B")
    parser.add_argument("--backend", default="onnx", help="default: onnx")
    parser.add_argument("--precision", default="fp32", help="default: fp32")
    parser.add_argument("--input", default="float32", help="float32 (the default) or uint8")
    parser.add_argument("--artifacts", help="folder of artifacts (default: one that is removed again)")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--seconds", type=above_zero, default=20.0, help="of each turn, about (default: 20)")
    parser.add_argument("--workers", type=positive, help="threads that decode (default: embed's own choice)")
    parser.add_argument("--name", default="embedding", help="name of the report (default: embedding)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="backbone-embedding-") as folder:
        made = [_measure(model, Path(folder), options) for model in options.models]
    command = "python -m benchmarks.embedding " + " ".join(sys.argv[1:] if arguments is None else arguments)
    write_report(made, options.name, command.strip())
    return 0 if all(figure.reached for figure in made) else 1


def _measure(model: str, folder: Path, options: argparse.Namespace) -> Figure:
    artifacts = options.artifacts or str(folder / "artifacts")
    forms = ("--out-indices=none", "--format=onnx", f"--precision={options.precision}", f"--input={options.input}")
    targets = ("--target=cpu",) if machine_facts()["nvidia_driver"] == "none" else ()
    build_cost.run_build(model, artifacts, *forms, *targets)
    how = {"backend": options.backend, "precision": options.precision, "input": options.input}
    with load_model(model, weights="random", artifacts=artifacts, on_fallback="error", **how) as backbone:
        figure = measure(backbone, folder, Turns(options.rounds, options.seconds, options.workers))
    print(f"{'reached' if figure.reached else 'MISSED '}  {figure.name}: {figure.measured}")
    return figure


def measure(backbone: Backbone, folder: Path, turns: Turns) -> Figure:
    """Return the figure of one model; tiles and rows are written below `folder`."""
    batch = backbone.preprocess(pictures.tiles((SIDE, SIDE), BATCH))
    backbone(batch)
    batches = max(2, round(turns.seconds / _bare(backbone, batch, 1)))
    count = batches * BATCH
    tiles = image_folder(folder / f"tiles-{count}", count)
    turns_of: dict[str, Callable[[], float]] = {
        "bare": lambda: _bare(backbone, batch, batches),
        "embed": lambda: _embed(backbone, tiles, folder / "rows", turns.workers),
    }
    seconds: dict[str, list[float]] = {"bare": [], "embed": [], "starved": [], "bare cpu": [], "embed cpu": []}
    for number in range(turns.rounds + 1):
        for name, turn in turns_of.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = turn()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                seconds[name].append(wall)
                seconds[f"{name} cpu"].append(cpu)
                seconds["starved"] += [result] if name == "embed" else []
    return _figure(backbone, count, seconds)


def _bare(backbone: Backbone, batch: np.ndarray[Any, Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        backbone(batch)
    return time.perf_counter() - started


def _embed(backbone: Backbone, tiles: Path, out: Path, workers: int | None) -> float:
    summary = embed(backbone, tiles, out, batch_size=BATCH, workers=workers, overwrite=True)
    if summary.unreadable:
        raise RuntimeError(f"{summary.unreadable} tiles could not be read")
    return summary.starved


def image_folder(folder: Path, count: int) -> Path:
    """Fill a folder with JPEG tiles of tissue."""
    folder.mkdir(exist_ok=True)
    jpegs = [pictures.jpeg(tile) for tile in pictures.tiles((SIDE, SIDE), 50)]
    for number in range(count):
        (folder / f"{number:07}.jpg").write_bytes(jpegs[number % len(jpegs)])
    return folder


def _figure(backbone: Backbone, count: int, seconds: dict[str, list[float]]) -> Figure:
    low, middle, high = ratios(seconds["embed"], seconds["bare"])
    rates = {name: count / median(seconds[name]) for name in ("bare", "embed")}
    info = backbone.info
    _, processor, _ = ratios(seconds["embed cpu"], seconds["bare cpu"])
    rounds, waited = len(seconds["bare"]), median(seconds["starved"])
    return Figure(
        name=f"{backbone.name}, {backbone.backend} {info['precision']} on {backbone.device}, input {info['input']}",
        goal=f"embed at least {GOAL:.0%} of the throughput of bare inference",
        reached=middle >= GOAL,
        measured=f"{middle:.1%} ({low:.1%} to {high:.1%} over {rounds} rounds of {count} tiles; by processor time "
        f"{processor:.1%}; tiles/s: bare {rates['bare']:.1f}, embed {rates['embed']:.1f}; inference waited "
        f"{waited:.1%} of the time)",
        data={"model": backbone.name, "tiles": count, "seconds": seconds},
    )


if __name__ == "__main__":
    sys.exit(main())
