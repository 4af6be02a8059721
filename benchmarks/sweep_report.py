"""The sweep over timm as a page for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine_facts import machine_facts
from runtime.backbones.timm_table import architectures, timm_version
from runtime.manifest import RECIPE

Rows = Mapping[str, Mapping[str, Any]]


def write(results: Rows, path: Path) -> None:
    """Write the report."""
    path.write_text(markdown(results), encoding="utf-8")


def markdown(results: Rows) -> str:
    """Return the report: totals, every failure and its cause, what was skipped, and the families."""
    known = architectures()
    facts = machine_facts()
    versions = facts["versions"]
    assert isinstance(versions, dict)
    lines = [
        "# timm, name by name",
        "",
        f"Made by `python -m benchmarks.sweep_timm` with random weights on {facts['cpus']} CPUs "
        f"({facts['processor']}), {facts['memory_gb']} GB, one model at a time on one thread. Each model: ONNX and "
        "TorchScript of the embedding, ONNX of the last two feature maps, through the whole build with its gate.",
        "",
        ", ".join(f"{package} {version}" for package, version in versions.items()) + ".",
        "",
        *_totals(results, {a.family for a in known.values()}, len(known)),
        *_problems("Failed", results, "failed"),
        *_problems("Skipped", results, "skipped"),
        *_families(results),
    ]
    return "\n".join(lines) + "\n"


def _totals(results: Rows, families: set[str], names: int) -> list[str]:
    tried = [row for row in results.values() if row["status"] != "skipped"]
    built = [row for row in tried if row["status"] == "built"]
    covered = {row["family"] for row in built}
    worst = max((o["relative_rms"] for row in built for o in row["outputs"]), default=float("nan"))
    missing = sorted(families - covered)
    return [
        "| | Goal | Measured |",
        "|---|---|---|",
        f"| Families with a model built and verified | all {len(families)} | {len(covered)} "
        f"({_percent(len(covered), len(families))}){': without ' + ', '.join(missing) if missing else ''} |",
        f"| Names built, of those tried | 98% | {len(built)} of {len(tried)} ({_percent(len(built), len(tried))}) |",
        f"| Names tried, of timm {timm_version()} | as many as the machine holds | {len(tried)} of {names}, "
        f"{len(results) - len(tried)} skipped |",
        f"| Names tried with the present recipe of graphs, {RECIPE} | all of them | "
        f"{sum(row.get('recipe') == RECIPE for row in tried)} of {len(tried)} |",
        f"| Worst relative RMS against eager | 1e-05 | {worst:.2g} |",
        "",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "none"


def _problems(title: str, results: Rows, status: str) -> list[str]:
    causes: dict[str, list[str]] = {}
    for name, row in sorted(results.items()):
        if row["status"] == status:
            causes.setdefault(_cell(row["reason"]), []).append(name)
    if not causes:
        return []
    rows = [f"| {', '.join(names)} | {cause} |" for cause, names in sorted(causes.items())]
    return [f"## {title}", "", "| Names | Cause |", "|---|---|", *rows, ""]


def _cell(text: str) -> str:
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= 400 else f"{line[:400]} …"


def _families(results: Rows) -> list[str]:
    by_family: dict[str, list[Mapping[str, Any]]] = {}
    for row in results.values():
        by_family.setdefault(row["family"], []).append(row)
    lines = ["## Families", "", "| Family | Built | Tried | Skipped | Worst relative RMS |", "|---|---|---|---|---|"]
    for family, rows in sorted(by_family.items()):
        built = [row for row in rows if row["status"] == "built"]
        skipped = sum(row["status"] == "skipped" for row in rows)
        worst = max((o["relative_rms"] for row in built for o in row["outputs"]), default=None)
        shown = "" if worst is None else f"{worst:.2g}"
        lines.append(f"| {family} | {len(built)} | {len(rows) - skipped} | {skipped} | {shown} |")
    return lines
