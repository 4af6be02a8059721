"""A report of `python -m benchmarks.run` as Markdown; every sentence about who is faster is computed."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.results import Row, Section, quartiles

Report = Mapping[str, Any]

HOW = (
    "Each contender runs in a process of its own on the same weights and the same tiles of tissue; they take turns, "
    "round by round, and a ratio is taken within each round. Shown are medians, in brackets the quartiles. Images are "
    "given as float32 on the contender's device (`from uint8`: as uint8), outputs stay there; a GPU is waited for "
    "before and after each call. The cold start is from the start of the process to the first embedding, compilation "
    "included; random weights are drawn by torch's contenders, not read from a file. Errors are those of the worst of "
    "four images, relative to the RMS of the reference."
)


def markdown(report: Report, plots: Sequence[str]) -> str:
    """Return the report, with links to `plots` beside it."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Benchmark",
        "",
        f"Made by `{report['command']}` on {machine['cpus']} CPUs ({machine['processor']}), {machine['memory_gb']} GB, "
        f"GPU: {machine['gpu']}, {machine['system']}.",
        "",
        f"{versions}; {machine.get('code', 'which code was not recorded')}.",
        "",
        HOW,
        "",
        *(line for plot in plots for line in (f"![{plot}]({plot})", "")),
        "## Where torch wins",
        "",
        *(torch_wins(report["sections"]) or ["Nowhere in this run."]),
    ]
    for section in report["sections"]:
        lines += ["", *_section(section)]
    if report["failed"]:
        lines += ["", "## Not measured", "", *(f"- {name}: {why}" for name, why in report["failed"].items())]
    return "\n".join(lines) + "\n"


def torch_wins(sections: Sequence[Section]) -> list[str]:
    """Return a sentence for each backbone, device and batch size where the fastest torch beats our fastest.

    In each precision and over all of them; where the quartiles of the two overlap, the sentence says so.
    """
    return [
        sentence
        for section in sections
        for batch in results.batches(section)
        for precision in (*dict.fromkeys(row["precision"] for row in results.contenders(section)), None)
        if (sentence := _torch_wins(section, batch, precision))
    ]


def _torch_wins(section: Section, batch: int, precision: str | None) -> str | None:
    rows = [r for r in results.contenders(section) if precision in (None, r["precision"])]
    theirs = results.fastest([r for r in rows if r["side"] == "torch"], batch)
    ours = results.fastest([r for r in rows if r["side"] == "ours"], batch)
    if theirs is None or ours is None:
        return None
    fast, slow = quartiles(results.ratios(theirs, batch)), quartiles(results.ratios(ours, batch))
    if fast[1] <= slow[1]:
        return None
    within = "; within the spread" if fast[0] <= slow[2] else ""
    return (
        f"- {section['model']} on {section['device']}, batch {batch}, {precision or 'any precision'}: "
        f"{theirs['label']} is {fast[1] / slow[1]:.2f} times as fast as {ours['label']}{within}."
    )


def _section(section: Section) -> list[str]:
    sizes = results.batches(section)
    height, width = section["image_size"]
    return [
        f"## {section['model']} on {section['device']}",
        "",
        f"{section['parameters'] / 1e6:.1f} M parameters, {section['flops'] / 1e9:.1f} GFLOP an image of {height} x "
        f"{width} pixels, {section['weights']} weights.",
        "",
        *_speed_table(section, sizes),
        "",
        *_cost_table(section, sizes),
        "",
        *_products(section, sizes),
        *_tiles(section, sizes),
        *_absent(section),
    ]


def _speed_table(section: Section, sizes: Sequence[int]) -> list[str]:
    heads = [f"Images/s, batch {batch}" for batch in sizes]
    table = [
        f"| Contender | Latency, batch 1, ms | {' | '.join(heads)} |",
        "|---" * (2 + len(sizes)) + "|",
    ]
    for row in results.contenders(section):
        if row.get("timings"):
            cells = [_latency(row), *(_throughput(row, batch) for batch in sizes)]
            table.append(f"| {row['label']} | {' | '.join(cells)} |")
    return table


def _latency(row: Row) -> str:
    seconds = results.seconds(row, 1)
    if not seconds:
        return "-"
    low, middle, high = (1000 * value for value in quartiles(seconds))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def _throughput(row: Row, batch: int) -> str:
    rate, ratios = results.images_per_second(row, batch), results.ratios(row, batch)
    if rate is None:
        return "-"
    if not ratios:
        return f"{rate:.4g}"
    low, middle, high = quartiles(ratios)
    return f"{rate:.4g}: {middle:.2f}x ({low:.2f} to {high:.2f})"


def _cost_table(section: Section, sizes: Sequence[int]) -> list[str]:
    largest = max(sizes, default=1)
    table = [
        "| Contender | Load, s | Cold start, s | Memory at batch 1, MB | Most memory, MB | GPU memory at batch 1, MB | "
        "Error to float64 | Cosine to float64 | Error to eager | "
        f"GFLOP/s, batch {largest} | Of the products' rate |",
        "|---" * 11 + "|",
    ]
    return table + [_costs(section, row, largest) for row in results.contenders(section) if row.get("timings")]


def _costs(section: Section, row: Row, batch: int) -> str:
    cold = row.get("cold", [])
    exact, eager = (row.get("fidelity", {}).get(name, {}) for name in ("float64", "eager"))
    rate = results.gflops(section, row, batch)
    peak = results.peaks(section, batch).get(row["precision"])
    device_mb = [one["device_mb"] for one in cold if one.get("device_mb") is not None]
    cells = [
        row["label"],
        _number(row.get("about", {}).get("load_seconds"), ".2f"),
        _number(median(one["seconds"] for one in cold) if cold else None, ".2f"),
        _number(median(one["peak_mb"] for one in cold) if cold else None, ".0f"),
        _number(row.get("peak_mb"), ".0f"),
        _number(median(device_mb) if device_mb else None, ".0f"),
        _number(exact.get("relative_rms"), ".1e", "**not finite**" if exact else "-"),
        _number(exact.get("min_cosine"), ".7f"),
        _number(eager.get("relative_rms"), ".1e"),
        _number(rate, ".0f"),
        _number(100 * rate / peak[0] if rate and peak else None, ".0f") + ("%" if rate and peak else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str, absent: str = "-") -> str:
    return absent if value is None else format(value, form)


def _products(section: Section, sizes: Sequence[int]) -> list[str]:
    lines = []
    for batch in sizes:
        if peaks := results.peaks(section, batch):
            told = ", ".join(f"{p} {rate:.0f} GFLOP/s ({by})" for p, (rate, by) in peaks.items())
            lines.append(f"- The backbone's matrix products alone, batch {batch}: {told}.")
    return lines


def _tiles(section: Section, sizes: Sequence[int]) -> list[str]:
    decode, prepare = (median(section["tile_seconds"][name]) for name in ("decode", "preprocess"))
    batch = max(sizes, default=1)
    shares: list[str] = []
    best = results.fastest([r for r in results.contenders(section) if r["images"] == "float32"], batch)
    for row in (results.eager(section), best):
        rate = results.images_per_second(row, batch) if row else None
        if row and rate:
            share = (decode + prepare) / (decode + prepare + 1 / rate)
            shares.append(f"{100 * share:.0f}% with {row['label']}")
    told = " and ".join(dict.fromkeys(shares)) or "not measured"
    return [
        f"- A JPEG tile takes {1000 * decode:.2f} ms to decode and {1000 * prepare:.2f} ms to preprocess on one CPU; "
        f"of the time from file to embedding at batch {batch}, {told}.",
    ]


def _absent(section: Section) -> list[str]:
    lines = [f"- Batch size left out: {why}" for why in section["not_measured"].values()]
    lines += [f"- Not run: {row['label']}: {row['reason']}" for row in section["contenders"] if row["reason"]]
    left_out = section.get("not_chosen", [])
    return lines + ([f"- Not asked for: {', '.join(left_out)}."] if left_out else [])
