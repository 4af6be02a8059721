"""One timm model, built in a process of its own, within limits of time and memory."""

import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from exporters.plan import Job, Outcome
from exporters.processes import context
from runtime import registry
from runtime.artifacts import open_store
from runtime.backbones.timm_table import architectures
from runtime.errors import BackboneError
from runtime.manifest import RECIPE, Form
from runtime.request import Request, make_request

VARIANTS: tuple[tuple[dict[str, Any], tuple[Form, ...]], ...] = (
    ({}, (Form("onnx"), Form("torchscript"))),
    ({"out_indices": 2}, (Form("onnx"),)),
)


def run(name: str, timeout: float, memory: float) -> dict[str, Any]:
    """Return what became of `name`: `built`, `failed` or `skipped`, with parity per output and the reason."""
    known, started = architectures()[name], time.monotonic()
    row = {"name": name, "family": known.family, "parameters": known.parameters, "recipe": RECIPE}
    if 2 * 4 * known.parameters > memory * 1e9:
        reason = f"its weights twice, in eager and in the artifact's session, are more than {memory:g} GB"
        return {**row, "status": "skipped", "reason": reason, "seconds": 0.0, "outputs": []}
    made = context()
    ours, theirs = made.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="backbone-sweep-") as artifacts:
        process = made.Process(target=_work, args=(name, artifacts, theirs), daemon=True)
        process.start()
        theirs.close()
        told = _wait(process, ours, started + timeout, memory)
        process.join()
        ours.close()
    return {**row, **told, "seconds": round(time.monotonic() - started, 1)}


def _wait(process: BaseProcess, connection: Connection, deadline: float, memory: float) -> dict[str, Any]:
    peak = 0.0
    while not connection.poll(0.2):
        peak = max(peak, _resident(process))
        if peak > memory * 1e9:
            process.kill()
            return _stopped("skipped", f"it needs more than {memory:g} GB of memory")
        if time.monotonic() > deadline:
            process.kill()
            return _stopped("failed", "the time limit passed")
    try:
        told: dict[str, Any] = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return _stopped("failed", f"the process ended with {how}")
    return {**told, "peak_gb": round(peak / 1e9, 2)}


def _stopped(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "outputs": []}


def _resident(process: BaseProcess) -> float:
    try:
        return float(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        return 0.0


def _work(name: str, artifacts: str, connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    problems: list[str] = []
    outputs: list[dict[str, Any]] = []
    for options, forms in VARIANTS:
        given = {"weights": "random", "artifacts": artifacts, **options}
        request = make_request(registry.find(f"timm/{name}"), None, given)
        for outcome in _build(Job(request, forms, threads=1)):
            label = f"{outcome.form.format} of {'embedding' if not options else 'maps'}"
            if outcome.status != "built":
                problems.append(f"{label}: {outcome.note}")
        outputs += _parity(request)
    status = "failed" if problems else "built"
    connection.send({"status": status, "reason": "; ".join(problems), "outputs": outputs})


def _build(job: Job) -> list[Outcome]:
    from exporters import pipeline, plan

    try:
        return pipeline.build(job)
    except BackboneError as error:
        return plan.failed(job, job.forms, error)
    except Exception as error:
        print(f"{job.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return plan.failed(job, job.forms, error)


def _parity(request: Request) -> list[dict[str, Any]]:
    published = open_store(request.artifacts).read(request.spec.name).artifacts
    chosen = [a for a in published if a.key.out_indices == request.canonical]
    return [
        {
            "name": f"{a.key.format} {output['name']}",
            "shape": list(info.shape[1:]),
            "relative_rms": output["relative_rms"],
            "min_cosine": output["min_cosine"],
            "float64_error": output["float64_error"],
        }
        for a in chosen
        for info, output in zip(a.outputs, a.facts["parity"]["outputs"], strict=True)
    ]
