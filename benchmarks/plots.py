"""Plots of a report of `python -m benchmarks.run`: throughput, fidelity against speed, distance from the limit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks import results
from benchmarks.results import Section, quartiles

COLOURS = {"torch": "tab:orange", "ours": "tab:blue", "peer": "tab:grey"}
MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}


def draw(report: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write `<stem>-throughput.png`, `-fidelity.png` and `-roofline.png`; return the files."""
    sections = [section for section in report["sections"] if results.batches(section)]
    if not sections:
        return []
    kinds: dict[str, Callable[[Any, Section], None]] = {
        "throughput": _throughput,
        "fidelity": _fidelity,
        "roofline": _roofline,
    }
    return [_figure(sections, panel, stem.with_name(f"{stem.name}-{name}.png")) for name, panel in kinds.items()]


def _figure(sections: list[Section], panel: Callable[[Any, Section], None], path: Path) -> Path:
    figure, axes = pyplot.subplots(
        1, len(sections), figsize=(7 * len(sections), 6), squeeze=False, layout="constrained"
    )
    for axis, section in zip(axes[0], sections, strict=True):
        axis.set_title(f"{section['model']} on {section['device']}", fontsize=10)
        panel(axis, section)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _throughput(axis: Any, section: Section) -> None:
    """Bars: how many times faster than eager fp32, with quartiles, at the largest batch size."""
    batch = results.batches(section)[-1]
    rows = [row for row in reversed(results.contenders(section)) if results.ratios(row, batch)]
    spread = [quartiles(results.ratios(row, batch)) for row in rows]
    middle = [m for _, m, _ in spread]
    errors = [[m - low for low, m, _ in spread], [high - m for _, m, high in spread]]
    axis.barh([row["label"] for row in rows], middle, xerr=errors, color=[COLOURS[row["side"]] for row in rows])
    for place, (row, value) in enumerate(zip(rows, middle, strict=True)):
        axis.annotate(f" {results.images_per_second(row, batch):.3g}/s", (value, place), va="center", fontsize=8)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel(f"times as fast as eager fp32, batch {batch} (images/s beside the bars)")
    axis.margins(x=0.15)


def _fidelity(axis: Any, section: Section) -> None:
    """Points: speed against the error to float64."""
    batch = results.batches(section)[-1]
    for row in results.contenders(section):
        error = row.get("fidelity", {}).get("float64", {}).get("relative_rms")
        if not error or not results.ratios(row, batch):
            continue
        speed = median(results.ratios(row, batch))
        axis.scatter(error, speed, color=COLOURS[row["side"]], marker=MARKERS[row["precision"]])
        axis.annotate(row["label"], (error, speed), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axis.set_xscale("log")
    axis.set_xlabel("relative RMS error to eager float64")
    axis.set_ylabel(f"times as fast as eager fp32, batch {batch}")
    axis.grid(alpha=0.3)
    axis.margins(x=0.2)


def _roofline(axis: Any, section: Section) -> None:
    """Lines: GFLOP/s over FLOPs per byte of weights, below the rates of the backbone's matrix products alone."""
    sizes = results.batches(section)
    width = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
    for row in results.contenders(section):
        points = [(b, rate) for b in sizes if (rate := results.gflops(section, row, b))]
        weights = section["parameters"] * width[row["precision"]]
        intensity = [section["flops"] * b / weights for b, _ in points]
        colour, marker = COLOURS[row["side"]], MARKERS[row["precision"]]
        axis.plot(intensity, [rate for _, rate in points], color=colour, marker=marker, linewidth=0.8)
        if points:
            axis.annotate(row["label"], (intensity[-1], points[-1][1]), fontsize=7)
    for precision in width:
        rates = [results.peaks(section, b)[precision] for b in sizes if precision in results.peaks(section, b)]
        if rates:
            rate, by = max(rates)
            axis.axhline(rate, color="black", linestyle="--", linewidth=0.8)
            axis.annotate(f"{precision} products ({by})", (0.01, rate), xycoords=("axes fraction", "data"), fontsize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOPs per byte of weights (grows with the batch)")
    axis.set_ylabel("GFLOP/s")
    axis.margins(x=0.2)
