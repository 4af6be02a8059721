"""Builds, as tests start them: by the command, or straight in a child process.

Children are forked from the builder's own server, which has imported the tiny backbones, too.
"""

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from exporters import build as command
from exporters import processes
from exporters.plan import Job, Outcome

# Called in the child before the build; returns who is told of every stage, if anybody is.
Prepare = Callable[[], Callable[[str], None] | None]


def context() -> ForkServerContext | SpawnContext:
    return processes.context(("tiny_backbones", *processes.PRELOAD))


@dataclass
class Child:
    process: BaseProcess
    connection: Connection

    def result(self) -> Any:
        """Return what the build returned or raised; for a killed process, the signal."""
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = None
        self.process.join()
        return answer if self.process.exitcode == 0 else signal.Signals(-(self.process.exitcode or 0))


def start(job: Job, prepare: Prepare | None = None) -> Child:
    ours, theirs = context().Pipe(duplex=False)
    process = context().Process(target=_work, args=(job, prepare, theirs), daemon=True)
    process.start()
    theirs.close()
    return Child(process, ours)


def build(job: Job, prepare: Prepare | None = None) -> list[Outcome] | Exception | signal.Signals:
    return start(job, prepare).result()  # type: ignore[no-any-return]


def _work(job: Job, prepare: Prepare | None, connection: Connection) -> None:
    import torch

    from exporters import pipeline

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    report = prepare() if prepare else None
    try:
        connection.send(pipeline.build(job, report or (lambda _: None)))
    except Exception as error:
        connection.send(error)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


TINY = ("--import", "tiny_backbones")


@dataclass
class Ran:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run_command(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command.main([str(a) for a in arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())
