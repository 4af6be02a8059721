"""How a run is shown: a live bar on a terminal, elsewhere a line a minute, and a summary."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.embedding.run import Progress
from runtime.embedding.summary import Summary
from runtime.machine import installed

# Seconds between two lines in a log.
EVERY = 60.0
# Until the first tile is known to be done or to be missing.
BEFORE = "listing the input, loading the model"


def console() -> Any:
    """Return the terminal's console, on standard error; `None` where rich is not installed."""
    if not installed("rich"):
        return None
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def shown(console: Any) -> Iterator[Progress]:
    """Give what shows how a run goes: a bar on a terminal, else a line now and then."""
    if console is None and sys.stderr.isatty():
        _say("a bar would be shown here with rich: pip install 'backbone-runtime[embed]'")
    with bar(console) if console is not None and console.is_terminal else lines() as progress:
        yield progress


@contextlib.contextmanager
def bar(console: Any) -> Iterator[Progress]:
    """Give what shows a bar with tiles per second and the time left."""
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as live:
        task = live.add_task(BEFORE, total=None, rate="")

        def show(done: int, every: int | None) -> None:
            speed = live.tasks[0].speed
            rate = f"{speed:,.1f} tiles/s" if speed else ""
            live.update(task, description="embedding", completed=done, total=every, rate=rate)

        yield show


@contextlib.contextmanager
def lines() -> Iterator[Progress]:
    """Give what says in a line now and then how far a run is: a log of days must tell that it goes on."""
    said, ended = [BEFORE], threading.Event()
    begun: list[tuple[int, float]] = []

    def note(done: int, every: int | None) -> None:
        if not begun:
            begun.append((done, time.monotonic()))
        before, started = begun[0]
        rate = (done - before) / max(time.monotonic() - started, 1e-9)
        said[0] = f"{done:,} of {'?' if every is None else f'{every:,}'} tiles, {rate:,.1f} tiles/s"

    def tell() -> None:
        while not ended.wait(EVERY):
            _say(said[0])

    thread = threading.Thread(target=tell, name="lines", daemon=True)
    thread.start()
    try:
        yield note
    finally:
        ended.set()
        thread.join()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


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
