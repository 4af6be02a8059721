"""Verifying again what is published: the gate of the build, on this machine and device. Nothing is changed."""

import time
from collections.abc import Callable

from exporters import memory, plan
from exporters.plan import Job, Outcome
from exporters.reference import load_eager, make_references
from exporters.trial import Trial, measure, obstacle, require_parity, worst
from runtime.artifacts import Store, open_store
from runtime.commands import build_command
from runtime.errors import ArtifactError, ArtifactNotFoundError, BackboneError, VerificationError
from runtime.load import device_of
from runtime.machine import installed
from runtime.manifest import Artifact
from runtime.providers import parse_device
from runtime.request import Request
from runtime.selection import verified_by


def verify(job: Job, report: Callable[[str], None] = lambda _: None) -> list[Outcome]:
    """Verify the job's published artifacts by every backend that may serve them; return what became of each.

    Raises:
        BackboneError: Nothing could be verified at all (weights, store, reference).
    """
    store = open_store(job.request.artifacts)
    found = _find(job, store)
    reasons = [_untried(artifact, job.request) for artifact in found]
    outcomes = [
        plan.outcome(job, artifact.key.form, "skipped", note=why)
        for artifact, why in zip(found, reasons, strict=True)
        if why is not None
    ]
    tried = [artifact for artifact, why in zip(found, reasons, strict=True) if why is None]
    if not tried:
        return outcomes
    report("loading eager")
    model = load_eager(job.request)
    report("eager reference")
    references = make_references(job.request, model, [artifact.key.form for artifact in tried])
    revision = model.revision
    memory.empty(model.module)  # a giant's eager weights and its session would not fit side by side
    trial = Trial(job.request, references, store.root, job.threads)
    return outcomes + [_verify(trial, job, artifact, revision, report) for artifact in tried]


def _find(job: Job, store: Store) -> list[Artifact]:
    name = job.request.spec.name
    published = {artifact.key: artifact for artifact in store.read(name).artifacts}
    keys = [job.request.key(form) for form in job.forms]
    if gone := [key.describe() for key in keys if key not in published]:
        raise ArtifactNotFoundError(f"Of {name!r} {'; '.join(gone)} is gone from {store.root} meanwhile.")
    return [published[key] for key in keys]


def _untried(artifact: Artifact, request: Request) -> str | None:
    """Return why none of the backends that may serve an artifact can be tried here; `None` if one can."""
    reasons = [backend_obstacle(artifact, backend, request) for backend in verified_by(artifact)]
    return None if None in reasons else "; ".join(str(reason) for reason in reasons)


def backend_obstacle(artifact: Artifact, backend: str, request: Request) -> str | None:
    """Return why an artifact cannot be tried by a backend where the request says; `None` if it can."""
    if not installed({"onnx": "onnxruntime", "openvino": "openvino"}.get(backend, "torch")):
        return f"{backend} is not installed"
    form = artifact.key.form
    if request.device is None and form.target != "cuda":
        return obstacle(form, backend, "cpu")
    device = parse_device(request.device)[0] or device_of(request, backend)
    return obstacle(form, backend, device)


def _verify(trial: Trial, job: Job, artifact: Artifact, revision: str | None, report: Callable[[str], None]) -> Outcome:
    form, started = artifact.key.form, time.perf_counter()
    numbers: dict[str, float] = {}
    served: list[str] = []
    try:
        Store(trial.root).check(trial.request.spec.name, artifact, full=True)
        _require_revision(artifact, revision)
        for backend in verified_by(artifact):
            if why := backend_obstacle(artifact, backend, trial.request):
                served.append(f"not by {backend}: {why}")
                continue
            report(f"verifying {form} by {backend}")
            measured = measure(trial, artifact, backend)
            numbers = numbers or worst(measured)
            require_parity(trial, artifact, measured)
            served.append(measured.served_by)
    except BackboneError as error:
        wrong = isinstance(error, VerificationError | ArtifactError)  # and not this machine's fault
        mend = f"Build it again with: {build_command(job.request, form)} --force" if wrong else ""
        return plan.failed(job, [form], error, detail=mend, **numbers)[0]
    seconds, size = time.perf_counter() - started, sum(file.bytes for file in artifact.files)
    return plan.outcome(job, form, "verified", note="; ".join(served), seconds=seconds, bytes=size, **numbers)


def _require_revision(artifact: Artifact, revision: str | None) -> None:
    """Raise unless eager has the very weights that the artifact was built from: their numbers would differ."""
    built = artifact.facts.get("source", {}).get("revision")
    if built != revision:
        raise VerificationError(
            f"it was built from revision {built} of the weights, and eager now loads revision {revision}"
        )
