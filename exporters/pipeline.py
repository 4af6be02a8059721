"""One variant of one backbone: export, stage, verify as a user would load it, publish."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporters import plan, record
from exporters.plan import Job, Outcome
from exporters.pool import WeightPool
from exporters.publish import Workspace, store_errors, stored_file, workspace
from exporters.reference import Reference, example, make_reference
from exporters.verify import (
    LIMITS,
    Parity,
    compare,
    gate,
    gate_float64,
    relative_rms,
    require_finite,
)
from runtime import eager
from runtime.artifacts import open_store, sha256_of
from runtime.backbone import Backbone
from runtime.errors import BackboneError, BuildError, VerificationError
from runtime.load import serve
from runtime.manifest import Artifact, Manifest, StoredFile, TensorInfo
from runtime.out_indices import label
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
        wanted = [step.format for step in steps if step.action == "build"]
        return plan.skipped(job, steps) + (_build(job, wanted, space, report) if wanted else [])


def _build(job: Job, formats: list[str], space: Workspace, report: Report) -> list[Outcome]:
    started = time.perf_counter()
    published = space.store.read(space.model)
    report("loading eager")
    model = _load_eager(job.request)
    report("eager reference")
    reference = make_reference(job.request, model)
    pool = WeightPool(space.published, published, space.staged)
    staged: list[Artifact] = []
    outcomes: list[Outcome] = []
    for format in sorted(formats):  # onnx first: writing TorchScript empties the module
        report(f"exporting {format}")
        try:
            with store_errors(space.store.root):
                staged.append(_export(job.request, format, model, reference, pool, published, space))
        except BackboneError as error:
            outcomes += plan.failed(job, [format], error)
    del model  # a giant's eager weights and its session would not fit side by side
    space.stage(staged)
    return outcomes + [_verify_and_publish(job, a, reference, space, report, started) for a in staged]


def _load_eager(request: Request) -> eager.EagerModel:
    try:
        return eager.build(request)
    except OSError as error:  # a file that its function misses is not the store's fault
        raise BuildError(f"{request.spec.name} could not be loaded: {type(error).__name__}: {error}") from error


def _export(
    request: Request,
    format: str,
    model: eager.EagerModel,
    reference: Reference,
    pool: WeightPool,
    published: Manifest,
    space: Workspace,
) -> Artifact:
    facts = record.facts(request, format, model)  # before writing empties the module
    part = space.staged / "graph.part"
    data = write_graph(request, format, model.module, reference.names, pool, part)
    digest = sha256_of(part)
    variant = "embedding" if request.canonical is None else f"maps_{label(request.canonical)}"
    graph = part.replace(part.with_name(f"{variant}.{request.precision}.{digest[:12]}.{format}"))
    in_batch = [("batch", *shape[1:]) for shape in (b.shape for b in [reference.batches[0], *reference.outputs[0]])]
    return Artifact(
        key=request.key(format),
        files=(
            StoredFile(graph.name, graph.stat().st_size, digest),
            *(stored_file(_existing(space, name), published) for name in data),
        ),
        inputs=(TensorInfo("images", _symbolic(request, in_batch[0], 1)),),
        outputs=tuple(
            TensorInfo(name, _symbolic(request, shape, request.spec.patch_size))
            for name, shape in zip(reference.names, in_batch[1:], strict=True)
        ),
        facts=facts,
    )


def write_graph(
    request: Request, format: str, module: Any, names: tuple[str, ...], pool: WeightPool, path: Path
) -> list[str]:
    """Export `module`, write its graph to `path` and its weights to the pool; return the weight files it reads.

    Raises:
        ExportError: The exporter failed, or the graph does not keep what it must.
    """
    if format == "torchscript":
        from exporters import to_torchscript

        return to_torchscript.write(to_torchscript.export(module, example(request)), pool, path)
    from exporters import to_onnx

    dynamic = request.size == "dynamic"
    program = to_onnx.export(module, example(request), names, request.spec.patch_size if dynamic else None)
    return to_onnx.write(program, pool, path, record.metadata(request, format), dynamic=dynamic)


def _existing(space: Workspace, name: str) -> Path:
    staged = space.staged / name
    return staged if staged.exists() else space.published / name


def _symbolic(request: Request, shape: tuple[Any, ...], divisor: int) -> tuple[int | str, ...]:
    if request.size != "dynamic" or len(shape) != 4:
        return shape
    factor = request.spec.patch_size // divisor
    return (*shape[:2], *(f"{factor}*{side}" if factor > 1 else side for side in ("h", "w")))


def _verify_and_publish(
    job: Job, artifact: Artifact, reference: Reference, space: Workspace, report: Report, started: float
) -> Outcome:
    format = artifact.key.format
    measured: dict[str, Any] = {}
    try:
        report(f"verifying {format}")
        parities, float64 = _verify(job, format, reference, space)
        measured = {
            "min_cosine": min(min(p.min_cosine, p.min_token_cosine) for p in parities),
            "max_abs": max(p.max_abs for p in parities),
            "relative_rms": max(p.relative_rms for p in parities),
        }
        _pass_gate(job, parities, float64)
        report(f"publishing {format}")
        with store_errors(space.store.root):
            space.publish(
                replace(artifact, facts={**artifact.facts, "parity": record.parity(parities, float64, reference)})
            )
    except VerificationError as error:
        where = _locate(job.request, artifact, reference, space)
        return plan.failed(job, [format], VerificationError(f"{error}.{where} Nothing was published"), **measured)[0]
    except BackboneError as error:
        return plan.failed(job, [format], error, **measured)[0]
    size = sum(file.bytes for file in artifact.files)
    return plan.outcome(job, format, "built", seconds=time.perf_counter() - started, bytes=size, **measured)


def load_staged(request: Request, format: str, root: Path, threads: int | None) -> Backbone:
    """Return the staged artifact as load_model serves it: same checks, no fallback, every byte hashed."""
    return serve(
        replace(
            request,
            backend=format,
            artifacts=str(root),
            device="cpu",
            on_fallback="error",
            verify="full",
            threads=threads,
        )
    )


def _verify(
    job: Job, format: str, reference: Reference, space: Workspace
) -> tuple[list[Parity], list[tuple[float, float]]]:
    with load_staged(job.request, format, space.staging.root, job.threads) as backbone:
        outputs = [_run(backbone, batch) for batch in reference.batches]
    got = [output if isinstance(output, list) else [output] for output in outputs]
    require_finite(f"the {format} artifact", reference.names, got)
    parities = compare(reference.names, reference.outputs, got)
    index = reference.exact_batch
    pairs = zip(reference.exact, reference.outputs[index], got[index], strict=True)
    return parities, [(relative_rms(exact, own), relative_rms(exact, new)) for exact, own, new in pairs]


def _run(backbone: Backbone, batch: Any) -> Any:
    try:
        return backbone(batch)
    except BackboneError:
        raise
    except Exception as error:  # whatever onnxruntime or torch raise for a graph that only its export's batch fits
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(f"the artifact does not run on a batch {list(batch.shape)}: {lines[0]}") from error


def _pass_gate(job: Job, parities: list[Parity], float64: list[tuple[float, float]]) -> None:
    limits = LIMITS[job.request.precision, job.request.spec.preprocessing.spatial_dims]
    gate(parities, limits)
    gate_float64(float64, limits)


def _locate(request: Request, artifact: Artifact, reference: Reference, space: Workspace) -> str:
    """Return a sentence on where an ONNX graph leaves the eager backbone, as far as that can be told."""
    if artifact.key.format != "onnx":
        return ""
    from exporters.diverge import first_diverging_node

    try:
        node = first_diverging_node(request, space.staged / artifact.graph.name, reference.names, example(request))
    except Exception as error:  # the search must not hide what it was started for
        return f" The first diverging node was not found: {type(error).__name__}: {error}."
    return f" First diverging node: {node}." if node else ""
