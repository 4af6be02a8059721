"""Measure the promises of the README, side by side in one run, and write them to benchmarks/reports/.

`--only` chooses figures. What building every backbone gives is `python -m benchmarks.catalogue`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import build_cost, cold_start, listing, throughput
from benchmarks.figure import Figure
from benchmarks.machine_facts import machine_facts
from runtime.arguments import parser_of, positive

REPORTS = Path(__file__).with_name("reports")
VIT_S = "universal/vit_small_patch16_224_random"
VIT_B = "pathology/kaiko_vitb16"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurements; return 0 when every figure is reached."""
    parser = parser_of("python -m benchmarks.figures", __doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--rounds", type=positive, default=11, help="timed rounds (default: 11)")
    parser.add_argument("--name", default="figures", help="name of the report (default: figures)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="backbone-figures-") as artifacts:
        made = [figure for name in options.only for figure in _measure(name, artifacts, options)]
    command = "python -m benchmarks.figures " + " ".join(sys.argv[1:] if arguments is None else arguments)
    write_report(made, options.name, command.strip())
    return 0 if all(figure.reached for figure in made) else 1


def _measure(name: str, artifacts: str, options: argparse.Namespace) -> list[Figure]:
    print(f"measuring {name} ...", file=sys.stderr)
    figures = _MEASURES[name](artifacts, options)
    for figure in figures:
        print(f"{'reached' if figure.reached else 'MISSED '}  {figure.name}: {figure.measured}")
    return figures


def _cold_start(artifacts: str, options: argparse.Namespace) -> list[Figure]:
    build_cost.run_build(VIT_S, artifacts, "--out-indices=none")
    return [cold_start.measure(artifacts, options.rounds)]


def _throughput(artifacts: str, options: argparse.Namespace) -> list[Figure]:
    for model in (VIT_S, VIT_B):
        build_cost.run_build(model, artifacts, "--out-indices=none")
    return [
        throughput.measure("ViT-S/16", VIT_S, "random", artifacts, 8, options.rounds),
        throughput.measure("ViT-B/16", VIT_B, "random", artifacts, 4, options.rounds),
    ]


def _listing(artifacts: str, options: argparse.Namespace) -> list[Figure]:  # noqa: ARG001
    return [listing.measure(options.rounds)]


def _variant(artifacts: str, options: argparse.Namespace) -> list[Figure]:  # noqa: ARG001
    return [build_cost.further_variant(VIT_B, artifacts), build_cost.both_targets_and_half(VIT_S, f"{artifacts}/half")]


def _giant(artifacts: str, options: argparse.Namespace) -> list[Figure]:
    return [build_cost.giant(artifacts), cold_start.giant(artifacts, options.rounds)]


_MEASURES: dict[str, Callable[[str, argparse.Namespace], list[Figure]]] = {
    "listing": _listing,
    "cold-start": _cold_start,
    "throughput": _throughput,
    "variant": _variant,
    "giant": _giant,
}
NAMES = tuple(_MEASURES)


def write_report(figures: list[Figure], name: str, command: str) -> None:
    """Write the figures as JSON and Markdown."""
    facts = machine_facts()
    REPORTS.mkdir(parents=True, exist_ok=True)
    data = {"command": command, "machine": facts, "figures": [asdict(figure) for figure in figures]}
    (REPORTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (REPORTS / f"{name}.md").write_text(_markdown(figures, facts, command), encoding="utf-8")
    print(f"Report: {REPORTS / name}.md", file=sys.stderr)


def _markdown(figures: list[Figure], facts: dict[str, Any], command: str) -> str:
    versions = facts["versions"]
    lines = [
        "# Figures",
        "",
        f"Made by `{command}` on {facts['cpus']} CPUs ({facts['processor']}), {facts['memory_gb']} GB, "
        f"NVIDIA driver: {facts['nvidia_driver']}, {facts['system']}.",
        "",
        ", ".join(f"{package} {version}" for package, version in versions.items()) + f"; {facts['code']}.",
        "",
        "| Figure | Goal | Measured | |",
        "|---|---|---|---|",
        *(f"| {f.name} | {f.goal} | {f.measured} | {'reached' if f.reached else '**missed**'} |" for f in figures),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
