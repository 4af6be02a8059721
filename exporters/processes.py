"""A builder's child process: how it starts, and what it does.

Where the system can fork, children are forked from a server that has imported torch, instead of importing it
anew.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from exporters import plan
from exporters.plan import Job, Outcome
from runtime.errors import BackboneError

# What takes long to import. Nothing here starts a thread or touches a GPU: such a state would not survive the fork.
PRELOAD = (
    "exporters.pipeline",
    "exporters.to_onnx",
    "exporters.to_torchscript",
    "exporters.float64",
    "onnxruntime",
    "onnxscript.function_libs.torch_lib.ops",
    "timm",
    "torch._functorch.aot_autograd",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
)


def context(preload: Sequence[str] = PRELOAD) -> ForkServerContext | SpawnContext:
    """Return how processes are started here: forked from a server that has imported `preload`, else from nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["exporters.fork_server", *preload])
    _start_server()
    return made


def _start_server() -> None:
    """Start the server, unless it runs; Ctrl-C waits until its first import has settled what that does there."""
    resource_tracker.ensure_running()  # else the server starts it, which lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(job: Job, connection: Connection, log: Path) -> None:
    """Body of the child process: do the job, and send stages, then the outcomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        connection.send([replace(outcome, peak_bytes=_peak_bytes()) for outcome in _do(job, connection)])
    except BrokenPipeError:
        sys.exit("the parent process is gone")


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _do(job: Job, connection: Connection) -> list[Outcome]:
    started = time.monotonic()
    try:
        for name in job.imports:
            import_module(name)
        import torch

        from exporters import pipeline, published

        if job.threads is not None:
            torch.set_num_threads(job.threads)
        task = {"build": pipeline.build, "verify": published.verify}[job.task]
        return task(job, connection.send)
    except BackboneError as error:
        return plan.failed(job, job.forms, error, seconds=time.monotonic() - started)
    except Exception as error:
        detail = traceback.format_exc()
        return plan.failed(job, job.forms, error, detail=detail, seconds=time.monotonic() - started)
