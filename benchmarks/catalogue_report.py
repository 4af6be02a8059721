"""What `benchmarks.catalogue` recorded: the ledger, and the report made of it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine_facts import machine_facts
from runtime.manifest import Form

REPORTS = Path(__file__).with_name("reports")
LEDGER = REPORTS / "catalogue.jsonl"
# By spatial dimensions: relative RMS against eager fp32.
GOALS = {2: 1e-5, 3: 1e-4}
MEMORY_GOAL = 24e9

Record = dict[str, Any]


def read_ledger() -> list[Record]:
    """Return the latest record of each variant that the newest recipe of its model has made, by model and variant.

    Variants of different recipes share no weights: what is said of a model would be of two.
    """
    if not LEDGER.exists():
        return []
    records = [json.loads(line) for line in LEDGER.read_text(encoding="utf-8").splitlines()]
    latest = {(record["model"], record["variant"]): record for record in records}
    newest: dict[str, int] = {}
    for record in latest.values():
        newest[record["model"]] = max(_recipe(record), newest.get(record["model"], 0))
    return [latest[key] for key in sorted(latest) if _recipe(latest[key]) == newest[key[0]]]


def _recipe(record: Record) -> int:
    return int(record["versions"]["onnx"]["recipe"])


def built(records: Iterable[Record]) -> list[Record]:
    """Return the outcomes that were published, of all records."""
    return [outcome for record in records for outcome in record["outcomes"] if outcome["status"] == "built"]


def worst_rms(records: Iterable[Record], dims: int) -> float | None:
    """Return the largest relative RMS of the images (2) or volumes (3) that were built."""
    values = [
        output["relative_rms"]
        for record in records
        if len(record["image_size"] or ()) == dims
        for outputs in record["outputs"].values()
        for output in outputs
    ]
    return max(values, default=None)


def write_report(names: list[str]) -> None:
    """Write catalogue.md."""
    (REPORTS / "catalogue.md").write_text(render(read_ledger(), names, machine_facts()), encoding="utf-8")


def render(records: list[Record], names: list[str], machine: dict[str, Any]) -> str:
    """Return the report on `records`; `names` are all registered backbones."""
    records = [record for record in records if record["model"] in names]
    artifacts = built(records)
    absent = sorted(set(names) - {r["model"] for r in records if built([r])})
    files = {(r["model"], name): size for r in records for name, size in r.get("files", {}).items()}
    peak = max((o["peak_bytes"] for o in artifacts), default=0)
    lines = [
        "# The catalogue, built",
        "",
        "Made by `python -m benchmarks.catalogue`: every registered backbone with loud random weights, exported,",
        f"verified against eager PyTorch and published, on {machine['cpus']} CPUs ({machine['processor']}), "
        f"{machine['memory_gb']} GB. Runs resume, and the machine may do other work meanwhile: times are wall clock,",
        "an upper bound.",
        "",
        f"- backbones built: {len(names) - len(absent)} of {len(names)}"
        + (f"; not built: {', '.join(absent)}" if absent else ""),
        f"- artifacts: {len(artifacts)} built, {_failures(records)} failed",
        *(
            f"- worst relative RMS, {what}: {_rms(records, dims)} (goal {GOALS[dims]:g})"
            for dims, what in _DIMS.items()
        ),
        f"- largest resident memory of a build: {peak / 1e9:.1f} GB (goal {MEMORY_GOAL / 1e9:.0f} GB)",
        f"- time: {sum(r['seconds'] for r in records) / 3600:.2f} h in all",
        f"- disk: {sum(files.values()) / 1e9:.1f} GB in all",
        "",
        "| Backbone | Outputs | Formats | Relative RMS | Peak memory | Time |",
        "|---|---|---|---|---|---|",
        *(row(record) for record in records),
    ]
    return "\n".join(lines) + "\n"


_DIMS = {2: "images", 3: "volumes"}


def _rms(records: list[Record], dims: int) -> str:
    worst = worst_rms(records, dims)
    return "none built" if worst is None else f"{worst:.2g}"


def _failures(records: list[Record]) -> int:
    return sum(outcome["status"] == "failed" for record in records for outcome in record["outcomes"])


def form_of(stored: Record) -> str:
    """Return how an artifact is stored, `onnx for cpu fp32`, of its outcome or key; the first records lack a target."""
    if "target" not in stored:
        return str(stored["format"])
    form = Form(stored["format"], stored["target"], stored["precision"], stored["input"])
    return str(form).replace(",", "")


def row(record: Record) -> str:
    """Return a variant's line of the report."""
    forms = [
        form_of(o) if o["status"] == "built" else f"{form_of(o)} {o['status']}: {o['note']}" for o in record["outcomes"]
    ]
    rms = [output["relative_rms"] for outputs in record["outputs"].values() for output in outputs]
    peak = max((o.get("peak_bytes", 0) for o in record["outcomes"]), default=0)
    cells = [
        record["model"],
        record["variant"],
        ", ".join(forms),
        f"{max(rms):.2g}" if rms else "",
        f"{peak / 1e9:.1f} GB" if peak else "",
        f"{record['seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"
