"""What a billion tiles need: what the driver does with long lists, measured here, and arithmetic from it.

Measured on this machine, in seconds of a core, so that what runs beside it does not count: decoding and preprocessing,
listing a folder, the driver's lists for so many names, looking at a folder of so many parts. Everything about GPUs is
arithmetic from their peak and an assumed efficiency: no GPU is measured here. Writes benchmarks/reports/scale.md.
"""

import json
import math
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa

from benchmarks import pictures
from benchmarks.figures import REPORTS
from benchmarks.machine_facts import machine_facts
from runtime.arguments import above_zero, parser_of, positive
from runtime.embedding import folder as folders
from runtime.embedding.decode import decode
from runtime.embedding.output import PART_TILES
from runtime.embedding.parts import Part, missing, split
from runtime.embedding.sources.folder import Folder
from runtime.embedding.sources.listing import Listing, find_files
from runtime.embedding.tile import Tile
from runtime.facts import HALF, Preprocessing
from runtime.preprocess import preprocess

# Dense peak of 16-bit matrix products in TFLOP/s, as the vendor states it; dollars an hour as clouds
# rent them out are an assumption.
GPUS = {"H200": (989, 4.0), "A100": (312, 2.0), "L4": (121, 0.8)}
EFFICIENCY = 0.3


@dataclass(frozen=True)
class Transformer:
    """A Vision Transformer: what decides how much it computes and writes."""

    name: str
    width: int
    depth: int
    patch: int
    side: int = 224

    @property
    def flops(self) -> float:
        """Of one image, a multiplication and an addition counted as two."""
        tokens = (self.side // self.patch) ** 2 + 1
        block = tokens * 12 * self.width**2 + 2 * tokens**2 * self.width
        return 2.0 * (self.depth * block + tokens * 3 * self.patch**2 * self.width)


MODELS = (
    Transformer("ViT-S/16", 384, 12, 16),
    Transformer("ViT-B/16", 768, 12, 16),
    Transformer("ViT-L/16", 1024, 24, 16),
    Transformer("ViT-g/14", 1536, 40, 14),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compute, and write the report."""
    parser = parser_of("python -m benchmarks.scale", str(__doc__).splitlines()[0])
    parser.add_argument("--tiles", type=above_zero, default=1e9, help="to embed (default: 1e9)")
    parser.add_argument("--names", type=positive, nargs="*", default=(1_000_000, 10_000_000), help="lists to measure")
    parser.add_argument("--files", type=positive, default=100_000, help="files of a folder that is really listed")
    parser.add_argument("--cpu-rate", type=above_zero, help="tiles/s of one core, of benchmarks.embedding_ray")
    parser.add_argument("--cpu-model", default="ViT-S/16", help="what that was measured with")
    options = parser.parse_args(arguments)
    data: dict[str, Any] = {
        "core": core(),
        "listing": listing(options.files),
        "parts": parts(math.ceil(options.tiles / PART_TILES)),
        "names": [in_a_process(names, count) for count in options.names],
        "cpu": {"model": options.cpu_model, "tiles_per_second": options.cpu_rate},
    }
    command = "python -m benchmarks.scale " + " ".join(sys.argv[1:] if arguments is None else arguments)
    report = {"command": command.strip(), "machine": machine_facts(), "tiles": options.tiles, **data}
    (REPORTS / "scale.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (REPORTS / "scale.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def core(repeats: int = 300) -> dict[str, float]:
    """Return what one core decodes and preprocesses in a second, of JPEG tiles of 224 pixels."""
    jpegs = [pictures.jpeg(tile) for tile in pictures.tiles((224, 224), 50)]
    facts = Preprocessing(size=224, mean=HALF, std=HALF)
    seconds = []
    for number in range(-10, repeats):
        started = time.process_time()
        preprocess(decode(Tile("", jpegs[number % len(jpegs)])), facts, (224, 224))
        if number >= 0:
            seconds.append(time.process_time() - started)
    return {"tiles_per_second": 1 / median(seconds), "bytes": median(map(len, jpegs))}


def listing(count: int) -> dict[str, float]:
    """Return how long it takes to list a folder of `count` small files: names, sorted."""
    with tempfile.TemporaryDirectory(prefix="backbone-scale-") as name:
        for number in range(count):
            (Path(name) / f"{number:09}.jpg").touch()
        _, seconds = timed(lambda: find_files(name, slides=False))
    return {"files": count, "seconds": seconds}


def parts(count: int) -> dict[str, float]:
    """Return how long it takes to see what is missing in an output folder of `count` parts."""
    pieces = [Part("000000", PART_TILES * n, PART_TILES * (n + 1), False) for n in range(count)]
    with tempfile.TemporaryDirectory(prefix="backbone-scale-") as name:
        for part in pieces:
            (Path(name) / part.name).touch()
        found, seconds = timed(lambda: folders.parts(Path(name)))
    if len(found) != count:
        raise RuntimeError(f"{len(found)} parts of {count} were found")
    return {"parts": count, "seconds": seconds}


def names(count: int) -> dict[str, float]:
    """Return what a list of `count` names costs the driver: seconds, memory, bytes that go to each node."""
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    made = pa.array((f"slide-{n // 1000:06}/tile-{n % 1000:04}.jpg" for n in range(count)), pa.large_string())
    source = Folder(Listing(Path("/data/tiles"), made))
    _, hashed = timed(source.fingerprint)
    ranges, planned = timed(lambda: split(missing(source.pieces(), ()), PART_TILES))
    sent, pickled = timed(lambda: len(pickle.dumps(source)))
    return {
        "names": count,
        "fingerprint_seconds": hashed,
        "plan_seconds": planned,
        "ranges": len(ranges),
        "pickle_seconds": pickled,
        "bytes_sent": sent,
        "resident_bytes": process.memory_info().rss - before,
    }


def in_a_process(measure: Callable[[int], dict[str, float]], count: int) -> dict[str, float]:
    """Return what `measure` gives in a process of its own, whose memory nobody else has used."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(measure(count)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told: dict[str, float] = json.loads(answer.read())
    os.waitpid(child, 0)
    return told


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `do` returns, and the seconds of a core that it took."""
    started = time.process_time()
    made = do()
    return made, time.process_time() - started


def markdown(report: dict[str, Any]) -> str:
    """Return the report as text: what was measured, then what is computed from it."""
    tiles, core, cpu, machine = report["tiles"], report["core"], report["cpu"], report["machine"]
    lines = [
        "# Scale",
        "",
        f"Made by `{report['command']}` on {machine['cpus']} CPUs ({machine['processor']}). No GPU was measured.",
        "",
        "## Measured here",
        "",
        "Seconds are those of a core. On a network file system its latency comes on top, once for every file.",
        "",
        f"- One core decodes and preprocesses {core['tiles_per_second']:,.0f} JPEG tiles of 224 x 224 a second "
        f"({core['bytes'] / 1e3:.0f} KB each).",
        f"- A local folder of {report['listing']['files']:,} files is listed in {report['listing']['seconds']:.2f} s: "
        f"{report['listing']['files'] / report['listing']['seconds']:,.0f} names a second.",
        f"- What is missing in a folder of {report['parts']['parts']:,} parts is seen in "
        f"{report['parts']['seconds']:.2f} s.",
        *(
            [f"- One core embeds {cpu['tiles_per_second']:.1f} tiles a second with {cpu['model']}, fp32, all included."]
            if cpu["tiles_per_second"]
            else []
        ),
        "",
        "| Names | Fingerprint | Plan | Ranges | Pickle | Sent to a node | Resident |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(_names_row(row) for row in report["names"]),
        "",
        f"## Computed: {tiles:,.0f} tiles",
        "",
        f"GPU numbers are **not measured**: peak 16-bit dense TFLOP/s x {EFFICIENCY:.0%} (assumed), dollars an hour "
        "assumed. Cores: what decodes for one GPU at that rate, by the measurement above.",
        "",
        "| Model | GFLOP a tile | Rows | GPU | tiles/s | GPU hours | Dollars | Cores a GPU | Read a GPU |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
        *(_gpu_row(model, gpu, tiles, core) for model in MODELS for gpu in GPUS),
    ]
    if cpu["tiles_per_second"]:
        hours = tiles / cpu["tiles_per_second"] / 3600
        lines += ["", f"On cores like these alone: {hours:,.0f} core hours ({hours / 24 / 365:,.1f} core years)."]
    return "\n".join(lines) + "\n"


def _names_row(row: dict[str, float]) -> str:
    return (
        f"| {row['names']:,} | {row['fingerprint_seconds']:.2f} s | {row['plan_seconds']:.2f} s | {row['ranges']:,} | "
        f"{row['pickle_seconds']:.2f} s | {row['bytes_sent'] / 1e6:,.0f} MB | {row['resident_bytes'] / 1e6:,.0f} MB |"
    )


def _gpu_row(model: Transformer, gpu: str, tiles: float, core: dict[str, float]) -> str:
    peak, dollars = GPUS[gpu]
    rate = peak * 1e12 * EFFICIENCY / model.flops
    hours = tiles / rate / 3600
    cores, read = rate / core["tiles_per_second"], rate * core["bytes"] / 1e6
    return (
        f"| {model.name} | {model.flops / 1e9:.1f} | {tiles * model.width * 4 / 1e12:.1f} TB | {gpu} | {rate:,.0f} | "
        f"{hours:,.0f} | {hours * dollars:,.0f} | {cores:.1f} | {read:,.0f} MB/s |"
    )


if __name__ == "__main__":
    sys.exit(main())
