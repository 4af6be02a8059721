"""One process per variant: one that dies or runs out of memory takes down nobody else, and its memory is really freed.

It also makes rebuilds identical: torch numbers the classes it traces per process.
"""

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from exporters import plan, processes
from exporters.plan import Job, Outcome
from runtime.errors import BuildError
from runtime.machine import cpu_count


class Observer(Protocol):
    """Who is told how the build goes."""

    def started(self, job: Job) -> None:
        """Note that the job has a process."""
        ...

    def stage(self, job: Job, stage: str) -> None:
        """Note what the job is doing."""
        ...

    def finished(self, job: Job, outcomes: list[Outcome]) -> None:
        """Note what became of the job."""
        ...


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    connection: Connection
    log: Path
    started: float
    stage: str = "starting"
    outcomes: list[Outcome] | None = None


def run(
    jobs: list[Job], observer: Observer, *, parallel: int = 1, timeout: float | None = None, fail_fast: bool = False
) -> list[Outcome]:
    """Run every job in a process of its own and return all outcomes, in the order of the jobs.

    Jobs of one model follow each other (they share weight data); jobs of different models run side by side.

    Args:
        jobs: What to build.
        observer: Told of every step.
        parallel: Processes at once.
        timeout: Seconds after which a job is killed.
        fail_fast: Start nothing more, and kill what runs, after the first failure.
    """
    threads = max(1, cpu_count() // parallel)
    pending = [replace(job, threads=threads) for job in jobs]
    order = {id(job): i for i, job in enumerate(pending)}
    results: dict[int, list[Outcome]] = {}
    running: list[_Running] = []
    with tempfile.TemporaryDirectory(prefix="backbone-build-") as logs, _killed_at_exit(running):
        while pending or running:
            while len(running) < parallel and (job := _next(pending, running)):
                pending.remove(job)
                running.append(_start(job, Path(logs) / f"{order[id(job)]}.log"))
                observer.started(job)
            for task in _events(running, observer, timeout):
                running.remove(task)
                outcomes = _collect(task, timeout)
                results[order[id(task.job)]] = outcomes
                observer.finished(task.job, outcomes)
            if fail_fast and any(o.status == "failed" for outcomes in results.values() for o in outcomes):
                pending.clear()
                _kill(running)
                running.clear()
    return [o for i in sorted(results) for o in results[i]]


def _next(pending: list[Job], running: list[_Running]) -> Job | None:
    busy = {task.job.request.spec.name for task in running}
    return next((job for job in pending if job.request.spec.name not in busy), None)


def _start(job: Job, log: Path) -> _Running:
    made = processes.context()
    ours, theirs = made.Pipe(duplex=False)
    process = made.Process(target=processes.work, args=(job, theirs, log), daemon=True)
    process.start()
    theirs.close()
    return _Running(job, process, ours, log, time.monotonic())


def _events(running: list[_Running], observer: Observer, timeout: float | None) -> list[_Running]:
    """Wait a little, pass on what the processes report, and return those that are over."""
    over = []
    ready = wait([task.connection for task in running], timeout=0.5)
    for task in running:
        if task.connection in ready and not _receive(task, observer):
            over.append(task)
        elif timeout is not None and time.monotonic() - task.started > timeout:
            task.process.kill()
            task.stage = f"timeout while {task.stage}"
            over.append(task)
    return over


def _receive(task: _Running, observer: Observer) -> bool:
    """Take one message; return whether more may follow."""
    try:
        message = task.connection.recv()
    except (EOFError, OSError):
        return False
    if isinstance(message, str):
        task.stage = message
        observer.stage(task.job, message)
        return True
    task.stage = "done"
    task.outcomes = message
    return False


def _collect(task: _Running, timeout: float | None) -> list[Outcome]:
    task.process.join()
    task.connection.close()
    if task.outcomes is not None:
        return task.outcomes
    seconds = time.monotonic() - task.started
    if task.stage.startswith("timeout"):
        error = BuildError(f"killed after {timeout:g} s ({task.stage}); allow more with --timeout")
    else:
        error = BuildError(f"{_how_it_died(task.process.exitcode)} while {task.stage}. {_last_line(task.log)}".strip())
    return plan.failed(task.job, task.job.forms, error, seconds=seconds)


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was killed by {name}{hint}"
    return f"the process ended with status {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""


@contextlib.contextmanager
def _killed_at_exit(running: list[_Running]) -> Iterator[None]:
    try:
        yield
    finally:
        _kill(running)


def _kill(running: list[_Running]) -> None:
    for task in running:
        task.process.kill()
        task.process.join()
