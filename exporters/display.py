"""How a build is shown: live on a terminal, plain lines elsewhere, JSON for machines."""

import contextlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from exporters.plan import Job, Outcome, Step
from runtime.out_indices import label

_STYLE = {"built": "green", "verified": "green", "skipped": "dim", "failed": "bold red"}


def console(*, stderr: bool = False) -> Console:
    """Return a console that does not squeeze tables when nobody looks at a terminal."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=160, soft_wrap=True)


class LiveProgress:
    """A bar for the whole build and a line per running job."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = progress.add_task("building", total=total, stage="")
        self._tasks: dict[str, TaskID] = {}

    def started(self, job: Job) -> None:
        """Add the job's line."""
        self._tasks[job.name] = self._progress.add_task(escape(job.name), total=None, stage="starting")

    def stage(self, job: Job, stage: str) -> None:
        """Show what the job is doing."""
        self._progress.update(self._tasks[job.name], stage=stage)

    def finished(self, job: Job, outcomes: list[Outcome]) -> None:
        """Replace the job's line by its outcomes."""
        self._progress.remove_task(self._tasks.pop(job.name))
        self._progress.advance(self._total)
        for outcome in outcomes:
            self._progress.console.print(f"[{_STYLE[outcome.status]}]{escape(line(outcome))}")


class PlainProgress:
    """One line per step, for logs."""

    def __init__(self, out: Console, total: int) -> None:
        self._out = out
        self._total = total
        self._done = 0

    def started(self, job: Job) -> None:
        """Print the job's name."""
        self._out.print(f"{job.name}: starting", markup=False)

    def stage(self, job: Job, stage: str) -> None:
        """Print the stage."""
        self._out.print(f"{job.name}: {stage}", markup=False)

    def finished(self, job: Job, outcomes: list[Outcome]) -> None:  # noqa: ARG002
        """Print the outcomes and how many jobs are left."""
        self._done += 1
        for outcome in outcomes:
            self._out.print(f"({self._done}/{self._total}) {line(outcome)}", markup=False)


def live(out: Console) -> Progress:
    """Return the progress display of a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=out, transient=True)


@contextlib.contextmanager
def observer(total: int) -> Iterator[LiveProgress | PlainProgress]:
    """Show how `total` jobs go, on standard error, until the end of the block."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield PlainProgress(out, total)
        return
    with live(out) as progress:
        yield LiveProgress(progress, total)


def line(outcome: Outcome) -> str:
    """Return an outcome as one line."""
    what = f"{outcome.model} [{outcome.variant}] {outcome.form}: {outcome.status}"
    return f"{what} ({outcome.note})" if outcome.note else f"{what} in {outcome.seconds:.0f} s"


def plan_table(planned: Sequence[tuple[Job, Step]]) -> Table:
    """Return what a build would do."""
    table = _table("MODEL", "VARIANT", "FORM", "ACTION", "REASON")
    for job, step in planned:
        variant = label(job.request.canonical)
        table.add_row(job.request.spec.name, variant, str(step.form), step.action, escape(step.reason))
    return table


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Return what a build did. SIZE is the graph and the weight data it shares with the model's other graphs."""
    table = _table("MODEL", "VARIANT", "FORM", "STATUS", "MIN COSINE", "MAX DIFF", "REL RMS", "SIZE", "TIME", "NOTE")
    for o in outcomes:
        table.add_row(
            o.model,
            o.variant,
            str(o.form),
            f"[{_STYLE[o.status]}]{o.status}",
            "" if o.min_cosine is None else f"{o.min_cosine:.9f}",
            "" if o.max_abs is None else f"{o.max_abs:.2g}",
            "" if o.relative_rms is None else f"{o.relative_rms:.2g}",
            f"{o.bytes / 1e6:.1f} MB" if o.bytes else "",
            f"{o.seconds:.0f} s" if o.seconds else "",
            escape(o.note if len(o.note) <= 60 else o.note[:57] + "..."),
        )
    return table


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=header != "NOTE", overflow="fold")
    return table


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the closing line."""
    counts = {status: sum(o.status == status for o in outcomes) for status in _STYLE}
    return (", ".join(f"{count} {status}" for status, count in counts.items() if count) or "nothing to do") + "."
