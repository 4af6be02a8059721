"""Compare two reports of `python -m benchmarks.run`: a gate against becoming slower, less exact or larger.

What is compared is each contender's ratio to eager fp32 of the same run, so that the machine's speed cancels. It is a
regression when the median has fallen by more than the limit, and the noise of both runs does not explain it: 95% of
the medians of rounds drawn again from both lie beyond the limit.

Loading, the cold start and the memory are compared as they were measured, on one machine only. They are a regression
when every value of the new report is beyond every one of the old by more than the limit, and by 0.25 s or 50 MB. The
memory of GPUs is not compared: other processes use it, too.

exit status: 0 nothing regressed, 1 something did or is no longer measured, 2 wrong usage, or reports that cannot be
compared.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.costs import Limits, compare_costs
from benchmarks.finding import FAILING, Finding
from benchmarks.lineup import EAGER
from benchmarks.results import ReportError, Row
from runtime.arguments import parser_of

Report = Mapping[str, Any]
DRAWS = 2000
# An error this many times as large is no longer the order of a sum.
WORSE_ERROR = 2.0
# Below float32's epsilon either run's error is luck.
EPSILON = float(np.finfo(np.float32).eps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two reports; return the exit status."""
    lines = __doc__.splitlines()
    parser = parser_of("python -m benchmarks.compare", lines[0], "\n".join(lines[2:]))
    parser.add_argument("before", type=Path, metavar="A.json", help="the report to keep up with")
    parser.add_argument("after", type=Path, metavar="B.json", help="the new one")
    add = parser.add_argument
    add("--max-regress", type=_share, default=Limits.speed, metavar="5%", help="of the speed (default: 5%%)")
    add(
        "--max-start",
        type=_growth,
        default=Limits.start,
        metavar="100%",
        help="of load, of cold start (default: 100%%)",
    )
    add("--max-memory", type=_growth, default=Limits.memory, metavar="20%", help="of the peak memory (default: 20%%)")
    parser.add_argument("--across", action="store_true", help="compare other machines or versions, too; they are named")
    options = parser.parse_args(arguments)
    try:
        before, after = results.read(options.before), results.read(options.after)
        limits = Limits(options.max_regress, options.max_start, options.max_memory)
        found = list(compare(before, after, limits))
        if not found:
            raise ReportError("Neither report measured a contender: there is nothing to compare.")
    except ReportError as error:
        parser.error(str(error))
    if differences := different(before, after):
        print("These reports come from different machines or versions:", *differences, sep="\n  ")
        if not options.across:
            parser.error("what changed would not be known. Measure both on one, or pass --across to compare anyway.")
        if elsewhere(before, after):
            print("Load, cold start and memory are not compared: the machine is another.")
    return _report(found, limits)


def _share(text: str) -> float:
    share = _number(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share below 1, such as 5% or 0.05")
    return share


def _growth(text: str) -> float:
    share = _number(text)
    if not 0 <= share < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no share by which something may grow, such as 50% or 0.5")
    return share


def _number(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return -1.0


def _report(found: Sequence[Finding], limits: Limits) -> int:
    width = max(len(finding.what) for finding in found)
    for finding in found:
        print(f"{finding.verdict:12}  {finding.what:{width}}  {finding.detail}".rstrip())
    failing = sum(finding.verdict in FAILING for finding in found)
    start, memory = 100 * limits.start, 100 * limits.memory
    print(f"\n{failing} of {len(found)} regressed; the limit is {100 * limits.speed:g}%", end="")
    print(f", of load and start {start:g}%, of memory {memory:g}%")
    return 1 if failing else 0


def different(before: Report, after: Report) -> list[str]:
    """Return what differs between the machines and versions of two reports, one line each: all but our own code."""
    flat = [
        {
            **{k: v for k, v in report["machine"].items() if k not in ("versions", "code")},
            **report["machine"]["versions"],
        }
        for report in (before, after)
    ]
    names = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{n}: {flat[0].get(n, 'none')} -> {flat[1].get(n, 'none')}" for n in names if flat[0].get(n) != flat[1].get(n)
    ]


def elsewhere(before: Report, after: Report) -> bool:
    """Return whether two reports come from different machines, whatever their versions."""
    own = ("versions", "code")
    first, second = ({k: v for k, v in r["machine"].items() if k not in own} for r in (before, after))
    return first != second


def compare(before: Report, after: Report, limits: Limits) -> Iterator[Finding]:
    """Give a finding for every contender, backbone, device and batch size of either report, and for costs that grew.

    Raises:
        ReportError: They have no backbone on a device in common, or its weights or image size differ.
    """
    old, new = ({(s["model"], s["device"]): s for s in report["sections"]} for report in (before, after))
    if not set(old) & set(new):
        names = [", ".join(" on ".join(key) for key in sections) or "nothing" for sections in (old, new)]
        raise ReportError(f"The reports share no backbone on a device: one measured {names[0]}, the other {names[1]}.")
    here = not elsewhere(before, after)
    for key in [key for key in old if key in new]:
        for fact in ("weights", "image_size", "parameters"):
            if old[key][fact] != new[key][fact]:
                raise ReportError(
                    f"{' on '.join(key)}: {fact} is {old[key][fact]} in one report, {new[key][fact]} in the other. "
                    "Measure the same in both."
                )
        rows = [{row["label"]: row for row in results.contenders(section)} for section in (old[key], new[key])]
        for label in dict.fromkeys([*rows[0], *rows[1]]):
            what, first, second = f"{' on '.join(key)}: {label}", rows[0].get(label), rows[1].get(label)
            yield from _contender(what, first, second, limits.speed)
            if here and first and second and first.get("timings") and second.get("timings"):
                yield from compare_costs(what, first, second, limits)
    for key in [key for key in old if key not in new]:
        yield Finding(" on ".join(key), "gone", "the backbone is not in the new report")


def _contender(what: str, old: Row | None, new: Row | None, limit: float) -> Iterator[Finding]:
    sizes = [
        {int(b) for b in row.get("timings", {}) if results.ratios(row, int(b))} if row else set() for row in (old, new)
    ]
    for batch in sorted(sizes[0] | sizes[1]):
        where = f"{what}, batch {batch}"
        if batch not in sizes[0]:
            yield Finding(where, "new", "")
        elif batch not in sizes[1]:
            yield Finding(where, "gone", (new or {}).get("reason") or "not measured at this batch size")
        elif old and new and old["label"] != EAGER:
            yield _speed(where, results.ratios(old, batch), results.ratios(new, batch), limit)
    if old and new and sizes[0] and sizes[1]:
        yield from _exactness(what, *(row.get("fidelity", {}).get("float64", {}) for row in (old, new)))


def _speed(where: str, old: Sequence[float], new: Sequence[float], limit: float) -> Finding:
    change = median(new) / median(old) - 1
    low, high = spread_of_change(old, new)
    detail = (
        f"{median(old):.2f}x -> {median(new):.2f}x eager: {100 * change:+.1f}% ({100 * low:+.1f} to {100 * high:+.1f})"
    )
    if change < -limit:
        return Finding(where, "slower" if high < -limit else "within noise", detail)
    return Finding(where, "faster" if low > 0 else "same", detail)


def spread_of_change(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Return the bounds between which 95% of the changes lie when the rounds of both runs are drawn again."""
    random = np.random.default_rng(0)
    medians = [np.median(random.choice(np.asarray(rounds), (DRAWS, len(rounds))), axis=1) for rounds in (old, new)]
    low, high = np.quantile(medians[1] / medians[0] - 1, (0.025, 0.975))
    return float(low), float(high)


def _exactness(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Finding]:
    errors = old.get("relative_rms"), new.get("relative_rms")
    if errors[0] is None:
        return
    if errors[1] is None:
        yield Finding(what, "less exact", "its outputs are no longer finite")
    elif errors[1] > WORSE_ERROR * max(errors[0], EPSILON):
        yield Finding(what, "less exact", f"relative RMS error to float64 {errors[0]:.2g} -> {errors[1]:.2g}")


if __name__ == "__main__":
    sys.exit(main())
