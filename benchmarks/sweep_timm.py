"""Try every timm model through the real build: export, verify, publish. Write down what became of each.

Every name is built with random weights: ONNX and TorchScript of the embedding, ONNX of the last two feature maps. Each
has a process of its own and loses its artifacts afterwards. Results are appended to a file as they come, so that a
sweep that was stopped goes on where it was. The smallest model of each family comes first, then the others by size.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks import sweep_report, sweep_worker
from exporters.arguments import parameter_count
from runtime.arguments import above_zero, parser_of, positive
from runtime.backbones.timm_table import Architecture, architectures

RESULTS = Path(__file__).with_name("reports") / "timm.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep; return 0 when every name tried was built."""
    options = _parser().parse_args(arguments)
    results = read(RESULTS)
    kept = {name: row for name, row in results.items() if row["status"] not in options.retry}
    waiting = [name for name in in_order(options) if name not in kept]
    print(f"{len(waiting)} models to try, {len(kept)} tried before", file=sys.stderr)
    deadline = time.monotonic() + 60 * options.time_limit if options.time_limit else None
    for name in waiting:
        if deadline and time.monotonic() > deadline:
            print("time is up; the same command goes on from here", file=sys.stderr)
            break
        row = sweep_worker.run(name, options.timeout, options.memory)
        _append(row)
        print(f"{row['status']:8} {name:45} {row['seconds']:6.1f} s  {row['reason'][:150]}", file=sys.stderr)
    results = read(RESULTS)
    RESULTS.write_text("".join(_line(row) for _, row in sorted(results.items())), encoding="utf-8")
    sweep_report.write(results, RESULTS.with_suffix(".md"))
    return 0 if all(row["status"] != "failed" for row in results.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("python -m benchmarks.sweep_timm", __doc__.splitlines()[0])
    parser.add_argument("glob", nargs="*", default=["*"], help="timm names (default: all)")
    parser.add_argument("--max-params", type=parameter_count, metavar="100M", help="leave out larger models")
    parser.add_argument("--per-family", type=positive, metavar="N", help="the N smallest of each family")
    parser.add_argument("--time-limit", type=above_zero, metavar="MIN", help="start nothing after this many minutes")
    parser.add_argument("--timeout", type=above_zero, default=900, help="seconds per model (default: 900)")
    parser.add_argument("--memory", type=above_zero, default=3, metavar="GB", help="per model, or skip it (default: 3)")
    parser.add_argument(
        "--retry", nargs="*", choices=("failed", "skipped"), default=(), help="try again what had this result"
    )
    return parser


def in_order(options: argparse.Namespace) -> list[str]:
    """Return the names to try: the smallest of each family first, then by size."""
    known = {name: a for name, a in architectures().items() if any(fnmatchcase(name, g) for g in options.glob)}
    by_family: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda name: _work(known[name])):
        by_family.setdefault(known[name].family, []).append(name)
    chosen = [name for names in by_family.values() for name in names[: options.per_family]]
    if options.max_params:
        chosen = [name for name in chosen if known[name].parameters <= options.max_params]
    firsts = {names[0] for names in by_family.values()}
    return sorted(chosen, key=lambda name: (name not in firsts, _work(known[name])))


def _work(architecture: Architecture) -> float:
    height, width = next(iter(architecture.tags.values())).input_size
    return float(architecture.parameters * height * width)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results by name; of a name tried more than once, the last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def _append(row: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(main())
