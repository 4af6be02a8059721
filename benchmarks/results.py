"""A report of `python -m benchmarks.run`, read back: what its raw timings say."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.lineup import EAGER
from benchmarks.work import flops_of_products

SCHEMA = 1
Section = Mapping[str, Any]
Row = Mapping[str, Any]


class ReportError(ValueError):
    """A file is no report that can be read; the message says what to do."""


def read(path: Path) -> dict[str, Any]:
    """Return a report.

    Raises:
        ReportError: There is no such file, it is not a report of `benchmarks.run`, or one of another schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}. Make one: python -m benchmarks.run") from error
    except ValueError as error:
        raise ReportError(f"{path} is no JSON: {error}. Name the .json that python -m benchmarks.run wrote.") from error
    if not isinstance(report, dict) or "sections" not in report:
        raise ReportError(f"{path} is no report of python -m benchmarks.run: it has no sections. Name its .json.")
    if report.get("schema") != SCHEMA:
        raise ReportError(
            f"{path} has schema {report.get('schema')}, this version reads {SCHEMA}. Measure again: {report['command']}"
        )
    return report


def contenders(section: Section) -> list[Row]:
    """Return the rows of whole backbones, measured or not."""
    return [row for row in section["contenders"] if row["side"] != "product"]


def batches(section: Section) -> list[int]:
    """Return the batch sizes that most contenders were compared at, ascending; of a lone contender, all of its own.

    Where time ran out a size may have been measured of eager alone, or of the last few: that compares little.
    """
    counts = Counter(int(batch) for row in contenders(section) for batch in row.get("timings", {}))
    most = max(counts.values(), default=0)
    return sorted(batch for batch, count in counts.items() if count > max(1, most // 2)) or sorted(counts)


def seconds(row: Row, batch: int) -> list[float]:
    """Return the seconds of each round; empty when it was not measured."""
    timings = row.get("timings", {}).get(str(batch))
    return list(timings["seconds"]) if timings else []


def ratios(row: Row, batch: int) -> list[float]:
    """Return how many times faster than eager fp32 it was, round by round; empty when it was not measured."""
    timings = row.get("timings", {}).get(str(batch))
    if not timings or len(timings["eager"]) != len(timings["seconds"]):
        return []
    return [eager / own for own, eager in zip(timings["seconds"], timings["eager"], strict=True)]


def images_per_second(row: Row, batch: int) -> float | None:
    """Return the median throughput."""
    rounds = seconds(row, batch)
    return batch / median(rounds) if rounds else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; of fewer than three, the extremes."""
    if len(values) < 3:
        return min(values), median(values), max(values)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def gflops(section: Section, row: Row, batch: int) -> float | None:
    """Return the billions of floating-point operations per second of the median round."""
    rounds = seconds(row, batch)
    if not rounds:
        return None
    work = flops_of_products(section["products"], batch) if row["side"] == "product" else batch * section["flops"]
    return float(work / median(rounds) / 1e9)


def peaks(section: Section, batch: int) -> dict[str, tuple[float, str]]:
    """Return by precision the fastest matrix products of the run at that batch size, in GFLOP/s, and whose they are."""
    found: dict[str, tuple[float, str]] = {}
    for row in section["contenders"]:
        rate = gflops(section, row, batch) if row["side"] == "product" else None
        if rate is not None:
            found[row["precision"]] = max(found.get(row["precision"], (0.0, "")), (rate, row["label"].split()[1]))
    return found


def fastest(rows: Sequence[Row], batch: int) -> Row | None:
    """Return the row with the highest median ratio to eager; `None` when none was measured."""
    measured = [row for row in rows if ratios(row, batch)]
    return max(measured, key=lambda row: median(ratios(row, batch)), default=None)


def eager(section: Section) -> Row | None:
    """Return the row of eager fp32."""
    return next((row for row in section["contenders"] if row["label"] == EAGER), None)
