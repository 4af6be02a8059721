"""The backends of this project in the order of their measured speed: a report of `benchmarks.run`, boiled down.

`python -m benchmarks.ranking REPORT.json` writes runtime/measured.json, which `backend="auto"` follows.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks import results
from benchmarks.lineup import CAPTURED, EAGER, INSTANTLY
from benchmarks.results import Row, Section
from runtime.arguments import parser_of


def ranking(report: Mapping[str, Any], batch: int | None = None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return `{device: {precision: [entry, ...]}}`, the fastest backend first.

    An entry has `backend` (what really served), `images_per_second` and `times_eager` (its ratio to eager fp32, by
    which the order is made): geometric means over the backbones that every backend listed for that device and
    precision was measured on, whose number is `backbones`. Eager torch is listed with the others. Backbones given as
    uint8 images, loaded without prepacking or replayed from CUDA graphs, and outputs that are not finite do not count.

    Args:
        report: What `benchmarks.run` wrote; see `results.read`.
        batch: The batch size that counts; by default 8 where it was measured, else the largest that was.
    """
    measured: dict[tuple[str, str], dict[str, dict[str, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for section in report["sections"]:
        size = _batch(section) if batch is None else batch
        for row in section["contenders"]:
            if (backend := _backend(row)) and results.ratios(row, size):
                speeds = results.images_per_second(row, size) or 0.0, median(results.ratios(row, size))
                measured[section["device"], row["precision"]][backend][section["model"]] = speeds
    ranked: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (device, precision), backends in measured.items():
        ranked.setdefault(device, {})[precision] = _order(backends)
    return ranked


def _batch(section: Section) -> int:
    sizes = results.batches(section)
    return 8 if 8 in sizes else max(sizes, default=1)


def _backend(row: Row) -> str | None:
    """Return the backend of `load_model` that a row stands for; `None` when it is another way."""
    finite = row.get("fidelity", {}).get("float64", {}).get("relative_rms") is not None
    if not finite or row["images"] != "float32":
        return None
    if row["side"] == "ours" and not row["label"].endswith((INSTANTLY, CAPTURED)):
        return str(row["about"]["backend"])
    return "eager" if row["label"] in (EAGER, f"eager {row['precision']}") else None


def _order(backends: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[dict[str, Any]]:
    shared = set.intersection(*(set(models) for models in backends.values()))
    entries = [_entry(backend, [models[m] for m in sorted(shared)]) for backend, models in backends.items() if shared]
    return sorted(entries, key=lambda entry: -entry["times_eager"])


def _entry(backend: str, speeds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    rates, ratios = zip(*speeds, strict=True)
    return {
        "backend": backend,
        "images_per_second": round(geometric_mean(rates), 3),
        "times_eager": round(geometric_mean(ratios), 3),
        "backbones": len(speeds),
    }


MEASURED = Path(__file__).parent.parent / "runtime" / "measured.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the ranking of a report to where the runtime reads it; what the report did not measure is kept."""
    parser = parser_of("python -m benchmarks.ranking", __doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="written by benchmarks.run")
    options = parser.parse_args(arguments)
    report = results.read(options.report)
    known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {"ranking": {}}
    merged = {**known["ranking"], **ranking(report)}
    source = f"benchmarks/reports/{options.report.name}, {report['machine']['processor']}"
    MEASURED.write_text(json.dumps({"source": source, "ranking": merged}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
