"""What a contender costs beside the time of an image: its start and its memory, compared between two reports.

These are seconds and megabytes as they were measured, a few times or once, not ratios to eager of the same round.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.finding import Finding
from benchmarks.results import Row

# What is less is noise whatever its share: a load of 30 ms doubles when another process runs.
LEAST_SECONDS = 0.25
LEAST_MB = 50.0


@dataclass(frozen=True)
class Limits:
    """By which share each may become worse.

    Attributes:
        speed: The ratio to eager.
        start: Loading, and the cold start.
        memory: The largest resident memory.
    """

    speed: float = 0.05
    start: float = 1.0
    memory: float = 0.2


@dataclass(frozen=True)
class _Cost:
    verdict: str
    name: str
    unit: str
    least: float
    values: Callable[[Row], list[float]]


def _one(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _cold(row: Row, fact: str) -> list[float]:
    return [start[fact] for start in row.get("cold") or ()]


_STARTS = (
    _Cost("slower load", "loading took", "s", LEAST_SECONDS, lambda row: _one(row["about"].get("load_seconds"))),
    _Cost("slower start", "the cold start took", "s", LEAST_SECONDS, lambda row: _cold(row, "seconds")),
)
_FIRST = _Cost("more memory", "the first image took", "MB", LEAST_MB, lambda row: _cold(row, "peak_mb"))
_PEAK = _Cost("more memory", "all batches took", "MB", LEAST_MB, lambda row: _one(row.get("peak_mb")))


def compare_costs(what: str, old: Row, new: Row, limits: Limits) -> Iterator[Finding]:
    """Give a finding for each cost of a contender that has grown, or that only one report has."""
    # What the last batch sizes need is most of the peak: with others it says nothing.
    memory = (_FIRST, _PEAK) if set(old["timings"]) == set(new["timings"]) else (_FIRST,)
    for cost in (*_STARTS, *memory):
        before, after = cost.values(old), cost.values(new)
        if bool(before) != bool(after):
            yield Finding(what, "not compared", f"only one report has what {cost.name}")
        elif before:
            yield from _grown(what, cost, (before, after), limits.memory if cost in memory else limits.start)


def _grown(what: str, cost: _Cost, measured: tuple[list[float], list[float]], share: float) -> Iterator[Finding]:
    """Give a finding if the median has grown by more than the limit: a regression if every value has."""
    old, new = map(median, measured)
    limit = max(share * old, cost.least)
    if new - old > limit:
        certain = min(measured[1]) - max(measured[0]) > limit
        detail = f"{cost.name} {old:.4g} -> {new:.4g} {cost.unit}: {100 * (new / old - 1):+.0f}%"
        yield Finding(what, cost.verdict if certain else "within noise", detail)
