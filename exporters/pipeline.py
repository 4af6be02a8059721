"""One variant of one backbone: export, stage, verify as a user would load it, publish."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporters import memory, plan, record
from exporters.exporter import Exporter
from exporters.plan import Job, Outcome
from exporters.pool import WeightPool
from exporters.reference import example, load_eager, make_references
from exporters.trial import Trial, measure, require_parity, worst
from runtime import eager
from runtime.artifacts import open_store, sha256_of
from runtime.errors import BackboneError, VerificationError
from runtime.machine import installed
from runtime.manifest import Artifact, Form, Manifest, StoredFile, TensorInfo
from runtime.out_indices import label
from runtime.publishing import Workspace, store_errors, stored_file, workspace
from runtime.request import Request

# Called with the name of each stage as it begins.
Report = Callable[[str], None]


def build(job: Job, report: Report = lambda _: None) -> list[Outcome]:
    """Build the job's artifacts and return what became of each; what fails is not published.

    Raises:
        BackboneError: Nothing could be built at all (weights, store, reference).
    """
    if job.max_params is not None and (steps := plan.too_large(job, eager.count_parameters(job.request))):
        return plan.skipped(job, steps)
    store = open_store(job.request.artifacts)
    report("waiting for the model's lock")
    with workspace(store, job.request.spec.name) as space:
        steps = plan.plan(job, store)
        wanted = [step.form for step in steps if step.action == "build"]
        return plan.skipped(job, steps) + (_build(job, wanted, space, report) if wanted else [])


def _build(job: Job, forms: list[Form], space: Workspace, report: Report) -> list[Outcome]:
    started = time.perf_counter()
    published = space.store.read(space.model)
    report("loading eager")
    model = load_eager(job.request)
    report("eager reference")
    references = make_references(job.request, model, forms)
    pool = WeightPool(space.published, published, space.staged)
    staged: list[Artifact] = []
    outcomes: list[Outcome] = []
    for format in dict.fromkeys(form.format for form in forms):
        report(f"exporting {format}")
        group = [form for form in forms if form.format == format]
        exporter = Exporter(job, format, model, references)
        for form in group:
            try:
                with store_errors(space.store.root):
                    staged.append(_stage(exporter, form, pool, published, space))
            except BackboneError as error:
                outcomes += plan.failed(job, [form], error)
    del exporter
    memory.empty(model.module)  # a giant's eager weights and its session would not fit side by side
    space.stage(staged)
    trial = Trial(job.request, references, space.staging.root, job.threads)
    return outcomes + [_verify_and_publish(trial, job, a, space, report, started) for a in staged]


def _stage(exporter: Exporter, form: Form, pool: WeightPool, published: Manifest, space: Workspace) -> Artifact:
    request, reference = exporter.job.request, exporter.references[form.input]
    facts = record.facts(request, form, exporter.model)  # before writing empties the module
    part = space.staged / "graph.part"
    written = exporter.write(form, pool, part)
    digest = sha256_of(part)
    graph = part.replace(part.with_name(f"{_file_name(request, form)}.{digest[:12]}.{form.format}"))
    shapes = [("batch", *batch.shape[1:]) for batch in (reference.batches[0], *reference.outputs[0])]
    return Artifact(
        key=request.key(form),
        files=(
            StoredFile(graph.name, graph.stat().st_size, digest),
            *(stored_file(_existing(space, name), published) for name in written.files),
        ),
        inputs=(TensorInfo("images", _symbolic(request, shapes[0], 1, form.input), form.input),),
        outputs=tuple(
            TensorInfo(name, _symbolic(request, shape, request.spec.patch_size))
            for name, shape in zip(reference.names, shapes[1:], strict=True)
        ),
        facts={**facts, **written.facts},
    )


def _file_name(request: Request, form: Form) -> str:
    variant = "embedding" if request.canonical is None else f"maps_{label(request.canonical)}"
    target = [] if form.target == "any" else [form.target]
    return ".".join([variant, *target, form.precision, *([] if form.input == "float32" else [form.input])])


def _existing(space: Workspace, name: str) -> Path:
    staged = space.staged / name
    return staged if staged.exists() else space.published / name


def _symbolic(request: Request, shape: tuple[Any, ...], divisor: int, input: str = "float32") -> tuple[int | str, ...]:
    if request.size != "dynamic" or len(shape) != 4:
        return shape
    factor = request.spec.patch_size // divisor
    sides = tuple(f"{factor}*{side}" if factor > 1 else side for side in ("h", "w"))
    return (shape[0], *sides, shape[3]) if input == "uint8" else (*shape[:2], *sides)


def _verify_and_publish(
    trial: Trial, job: Job, artifact: Artifact, space: Workspace, report: Report, started: float
) -> Outcome:
    form = artifact.key.form
    numbers: dict[str, Any] = {}
    try:
        report(f"verifying {form}")
        measured = measure(trial, artifact, form.backends[0])
        numbers = worst(measured)
        require_parity(trial, artifact, measured)
        parity = {
            "parity": record.parity(measured, trial.reference(artifact)),
            "also_served_by": _verify_further(trial, artifact, report),
        }
        report(f"publishing {form}")
        with store_errors(space.store.root):
            space.publish(replace(artifact, facts={**artifact.facts, **parity}))
    except VerificationError as error:
        where = _locate(trial, artifact)
        return plan.failed(job, [form], VerificationError(f"{error}.{where} Nothing was published"), **numbers)[0]
    except BackboneError as error:
        return plan.failed(job, [form], error, **numbers)[0]
    size = sum(file.bytes for file in artifact.files)
    return plan.outcome(job, form, "built", seconds=time.perf_counter() - started, bytes=size, **numbers)


def _verify_further(trial: Trial, artifact: Artifact, report: Report) -> dict[str, Any]:
    """Return the parity by each further backend that is installed and whose numbers pass; only these may serve."""
    passed: dict[str, Any] = {}
    for backend in filter(installed, artifact.key.form.backends[1:]):
        report(f"verifying {artifact.key.form} by {backend}")
        try:
            measured = measure(trial, artifact, backend)
            require_parity(trial, artifact, measured)
        except BackboneError as error:
            report(f"{backend} will not serve it: {error}")
            continue
        passed[backend] = record.outputs(measured)
    return passed


def _locate(trial: Trial, artifact: Artifact) -> str:
    """Return a sentence on where an ONNX graph leaves the eager backbone, as far as that can be told."""
    if artifact.key.form != Form("onnx"):
        return ""
    from exporters.diverge import first_diverging_node

    request, names = trial.request, trial.reference(artifact).names
    try:
        node = first_diverging_node(request, trial.graph(artifact), names, example(request))
    except Exception as error:  # the search must not hide what it was started for
        return f" The first diverging node was not found: {type(error).__name__}: {error}."
    return f" First diverging node: {node}." if node else ""
