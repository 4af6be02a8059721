"""Measure the speed and the fidelity of every way to serve backbones here, side by side, and write the report.

Eager torch, torch.compile, TorchScript, the artifacts of this project on every backend and at every precision, and what
others do: each in a process of its own, in turns, on the same weights and images. What cannot run here is listed with
the reason. Artifacts that are missing are built first.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks import needs, peers, pictures, render
from benchmarks.contender import ContenderError
from benchmarks.lineup import EAGER, LINEUPS, Entry, labels
from benchmarks.machine_facts import machine_facts
from benchmarks.measurement import Plan, measure
from benchmarks.results import SCHEMA
from benchmarks.subject import Subject, yardstick
from exporters import plan
from runtime import registry
from runtime.arguments import above_zero, count, parser_of, positive
from runtime.errors import BackboneError, OptionError
from runtime.machine import cpu_count, nvidia_driver
from runtime.request import make_request

REPORTS = Path(__file__).with_name("reports")
# ViT-S, ViT-B and ViT-L.
MODELS = ("universal/vit_small_patch16_224_random", "pathology/kaiko_vitb16", "pathology/mahmood_uni")
BATCHES = (1, 8, 32, 64)
# Fewer CPUs than this take minutes for a batch of 64.
SMALL_MACHINE = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 when every backbone asked for was measured."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(given)
    try:
        models = plan.names(options.names, (), False) if options.names else list(MODELS)
        entries = {device: _chosen(LINEUPS[device], options.contenders) for device in _devices(options.device)}
    except BackboneError as error:
        parser.error(str(error))
    facts = machine_facts()
    facts["versions"] |= _optimum(parser, options.optimum)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "command": " ".join(["python -m benchmarks.run", *given]),
        "machine": facts,
        "settings": {"rounds": options.rounds, "budget_minutes": options.budget, "cold_starts": options.cold_starts},
        "sections": [],
        "failed": {},
    }
    with tempfile.TemporaryDirectory(prefix="backbone-benchmark-") as scratch:
        for section in _sections(models, entries, options, Path(scratch), report["failed"]):
            report["sections"].append(section)
            _write(report, options)  # what is measured is not lost when the next backbone fails
    _write(report, options)
    for line in render.render(options.out / f"{options.name}.json"):
        print(line)
    return 1 if report["failed"] or not report["sections"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("python -m benchmarks.run", __doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME|GLOB", help="registered backbones (default: a ViT-S, a ViT-B and a ViT-L)")
    add("--device", choices=("cpu", "cuda"), help="default: the CPU, and the GPU where a driver is present")
    add("--batches", type=_numbers, metavar="N,N", help="default: 1,8,32,64; on few CPUs 1,8,32")
    add("--rounds", type=positive, default=25, help="most rounds of a batch size (default: 25)")
    add("--budget", type=above_zero, default=20.0, metavar="MINUTES", help="stop adding rounds then (default: 20)")
    add(
        "--cold-starts",
        type=count,
        default=3,
        metavar="N",
        help="fresh processes a contender, 0 for none (default: 3)",
    )
    add("--contenders", action="append", default=[], metavar="GLOB", help="only these, beside eager fp32 (repeatable)")
    add(
        "--optimum",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter of an environment with optimum-onnx, torch, timm and this project's base "
        "(default: this one; optimum needs an older transformers than this project's own extra)",
    )
    add("--weights", choices=("pretrained", "random"), default="random", help="default: random")
    add("--artifacts", metavar="DIR", help="use and fill this store (default: a temporary one)")
    add("--build", action=argparse.BooleanOptionalAction, default=True, help="build what is missing (default: yes)")
    add("--name", default="benchmark", help="of the report (default: benchmark)")
    add("--out", type=Path, default=REPORTS, metavar="DIR", help="where the report goes (default: benchmarks/reports)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are no batch sizes, such as 1,8,32")
    return tuple(numbers)


def _devices(device: str | None) -> list[str]:
    return [device] if device else ["cpu", *(["cuda"] if nvidia_driver() else [])]


def _chosen(entries: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Return the entries that match, and eager fp32 always.

    Raises:
        OptionError: A pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(label, pattern) for label in labels()):
            raise OptionError(f"--contenders={pattern!r} matches none of {', '.join(labels())}.")
    return [e for e in entries if not patterns or e.label == EAGER or any(fnmatchcase(e.label, p) for p in patterns)]


def _sections(
    models: Sequence[str],
    entries: dict[str, list[Entry]],
    options: argparse.Namespace,
    scratch: Path,
    failed: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Measure each backbone on each device; the time left is shared by the root of their work."""
    ends = time.monotonic() + 60 * options.budget
    artifacts = str(Path(options.artifacts or scratch / "artifacts").absolute())
    subjects = [s for model in models if (s := _subject(model, options.weights, artifacts, failed))]
    weights = [math.sqrt(subject.work["flops"]) for subject in subjects for _ in entries]
    for number, (subject, device) in enumerate((s, d) for s in subjects for d in entries):
        now = time.monotonic()
        deadline = now + (ends - now) * weights[number] / sum(weights[number:])
        batches = options.batches or _batches(device)
        asked = {"build": options.build, "folder": scratch / f"peers-{number}", "optimum": options.optimum}
        candidates = needs.prepare(subject, device, entries[device], batches=batches, **asked)
        _tell(f"{subject.model} on {device}: {sum(c.reason is None for c in candidates)} contenders")
        section = measure(subject, device, candidates, Plan(batches, options.rounds, options.cold_starts, deadline))
        section["not_measured"] |= _left_out(device, batches)
        section["not_chosen"] = [e.label for e in LINEUPS[device] if e not in entries[device]]
        section["tile_seconds"] = pictures.seconds_per_tile(subject.facts, subject.size)
        if not any(row.get("timings") for row in section["contenders"]):
            reason = next(row["reason"] for row in section["contenders"] if row["label"] == EAGER)
            failed[f"{subject.model} on {device}"] = f"without {EAGER} there is nothing to compare with: {reason}"
        yield section


def _batches(device: str) -> tuple[int, ...]:
    return BATCHES[:-1] if device == "cpu" and cpu_count() < SMALL_MACHINE else BATCHES


def _left_out(device: str, batches: Sequence[int]) -> dict[str, str]:
    """Return the usual batch sizes that are not asked for on this machine, with the reason."""
    reason = f"this machine has {cpu_count()} CPUs: --batches asks for it"
    return {
        str(b): f"batch {b}: {reason}" for b in BATCHES if device == "cpu" and b not in (*batches, *_batches(device))
    }


def _optimum(parser: argparse.ArgumentParser, python: str) -> dict[str, str]:
    """Return the version of optimum in an interpreter that was named."""
    if python == sys.executable:
        return {}
    try:
        return {"optimum-onnx": peers.optimum_version(python)}
    except peers.PeerError as error:
        parser.error(f"--optimum: {error}. Install there: optimum-onnx and backbone-runtime[cpu,export].")


def _subject(model: str, weights: str, artifacts: str, failed: dict[str, str]) -> Subject | None:
    """Return the backbone with its yardstick, or `None` and the reason in `failed`."""
    spec = registry.find(model)
    size = make_request(spec, None, {"weights": weights}).size
    if len(size) != 2 or isinstance(size, str):
        failed[model] = "it takes volumes; pictures are measured"
        return None
    _tell(f"{model} in float64")
    try:
        exact, work = yardstick(model, spec.preprocessing, (size[0], size[1]), weights)
    except ContenderError as error:
        failed[model] = str(error)
        return None
    return Subject(model, spec.preprocessing, (size[0], size[1]), weights, artifacts, exact, work)


def _write(report: dict[str, Any], options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (options.out / f"{options.name}.json").write_text(text, encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
