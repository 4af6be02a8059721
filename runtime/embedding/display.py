"""How a run is shown: a live bar on a terminal; nowhere else anything but the summary."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.embedding.run import Progress
from runtime.embedding.summary import Summary
from runtime.machine import installed


def console() -> Any:
    """Return the terminal's console, on standard error; `None` where rich is not installed."""
    if not installed("rich"):
        return None
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def bar(console: Any) -> Iterator[Progress | None]:
    """Give what shows a bar with tiles per second and the time left; `None` where nobody watches."""
    if console is None or not console.is_terminal:
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("embedding"),
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("embedding", total=None, rate="")

        def show(done: int, to_do: int | None) -> None:
            speed = shown.tasks[0].speed
            shown.update(task, completed=done, total=to_do, rate=f"{speed:,.1f} tiles/s" if speed else "")

        yield show


def text(summary: Summary) -> str:
    """Return a summary in words."""
    lines = [
        f"{summary.rows:,} rows in {summary.out}: {summary.tiles:,} tiles in {summary.seconds:,.1f} s, "
        f"{summary.tiles_per_second:,.1f} tiles/s ({summary.model}, {summary.backend} on {summary.device}, "
        f"{summary.precision}; inference waited {summary.starved:.0%} of the time)"
    ]
    if summary.unreadable:
        lines.append(f"{summary.unreadable:,} tiles could not be read: see {summary.out}/_unreadable")
    if summary.ignored:
        lines.append(_ignored(summary.ignored))
    return "\n".join(lines)


def _ignored(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{suffix or 'no suffix'} {count:,}" for suffix, count in most[:5])
    return f"ignored: {sum(counts.values()):,} files ({named}{', ...' if len(most) > 5 else ''})"
