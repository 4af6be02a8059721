"""Serving an artifact exactly as a user would, and measuring it against the eager backbone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters import memory
from exporters.full_precision import torch_in_full_precision
from exporters.gate import LIMITS, Measured, gate, gate_float64, require_finite
from exporters.inputs import of_pictures
from exporters.parity import compare, relative_rms
from exporters.reference import Reference
from runtime.artifacts import Store
from runtime.backbone import Backbone
from runtime.errors import VerificationError
from runtime.load import device_of, serve_artifact
from runtime.manifest import Artifact, Form
from runtime.request import Request
from runtime.selection import unable

# Ranges of int8 are constants measured on pictures, and an artifact that takes uint8 is given nothing else.
_CLIPPING = (Form("onnx", "cpu", "int8"),)


@dataclass(frozen=True)
class Trial:
    """What artifacts of one variant are tried on, and where.

    Attributes:
        request: What they answer. Its device is where they run; `None` is the device each is made for, and the CPU for
            what is made for CUDA where CUDA does not start.
        references: What eager torch gives, by input contract.
        root: Of the store that their files lie in: the staging folder of a build, or the one that users read.
        threads: CPU threads; `None` for all.
    """

    request: Request
    references: dict[str, Reference]
    root: Path
    threads: int | None = None

    def reference(self, artifact: Artifact) -> Reference:
        """Return what eager torch gives for what the artifact takes."""
        return self.references[artifact.key.input]

    def graph(self, artifact: Artifact) -> Path:
        """Return the path of the artifact's graph."""
        return Store(self.root).folder(self.request.spec.name) / artifact.graph.name


def measure(trial: Trial, artifact: Artifact, backend: str) -> Measured:
    """Return how far the artifact lies from eager, served by `backend`.

    Raises:
        VerificationError: It does not run, or gives values that are not finite or of another shape.
        BackboneError: It cannot be loaded.
    """
    reference = trial.reference(artifact)
    outputs, served_by = _serve(trial, artifact, backend)
    require_finite(f"the artifact ({artifact.key.form})", reference.names, outputs)
    keep = of_pictures if artifact.key.form in _CLIPPING else list
    parities = compare(reference.names, keep(reference.outputs), keep(outputs))
    own = reference.own_errors[artifact.key.precision]
    new = [relative_rms(e, o) for e, o in zip(reference.exact, outputs[reference.exact_batch], strict=True)]
    return Measured(parities, list(zip(own, new, strict=True)), served_by)


def require_parity(trial: Trial, artifact: Artifact, measured: Measured) -> None:
    """Raise unless the artifact keeps the limits of its precision.

    Raises:
        VerificationError: Naming each output that does not.
    """
    limits = LIMITS[artifact.key.precision, trial.request.spec.preprocessing.spatial_dims]
    gate(measured.parities, limits)
    gate_float64(measured.float64, limits)


def worst(measured: Measured) -> dict[str, float]:
    """Return the worst numbers over all outputs, as an outcome tells them."""
    return {
        "min_cosine": min(min(p.min_cosine, p.min_token_cosine) for p in measured.parities),
        "max_abs": max(p.max_abs for p in measured.parities),
        "relative_rms": max(p.relative_rms for p in measured.parities),
    }


def load_for_trial(trial: Trial, artifact: Artifact, backend: str) -> Backbone:
    """Return the artifact as load_model serves it: same checks, no fallback, every byte hashed."""
    form = artifact.key.form
    asked = replace(
        trial.request,
        backend=backend,
        precision=form.precision,
        input=form.input,
        artifacts=str(trial.root),
        device=_device(trial.request, form),
        on_fallback="error",
        verify="full",
        threads=trial.threads,
    )
    return serve_artifact(asked, backend, artifact)


def _device(request: Request, form: Form) -> str | None:
    if request.device is not None:
        return request.device
    return None if form.target == "cuda" else "cpu"


def obstacle(form: Form, backend: str, device: str) -> str | None:
    """Return why an artifact of `form` cannot be tried on a device, `cpu` or `cuda`; `None` if it can."""
    if form.format == "pt2" and form.target != device:
        return f"it was compiled for {form.target}"
    if is_emulated(form, device) or unable(backend, device, form.precision) is None:
        return None
    return f"{backend} does not run {form.precision} on {device}"


def is_emulated(form: Form, device: str) -> bool:
    """Return whether only an emulation tells its numbers on a device: CPUs have no kernels for 16-bit CUDA graphs."""
    return device == "cpu" and (form.format, form.target) == ("onnx", "cuda") and form.precision in ("fp16", "bf16")


def _serve(trial: Trial, artifact: Artifact, backend: str) -> tuple[list[list[Any]], str]:
    """Return the artifact's outputs for each batch, and what computed them."""
    batches = trial.reference(artifact).batches
    if is_emulated(artifact.key.form, device_of(trial.request, backend)):
        from exporters.half.emulation import read_staged, run_emulated

        return run_emulated(read_staged(trial.graph(artifact)), batches), "emulated on the CPU, every value rounded"
    with torch_in_full_precision(), load_for_trial(trial, artifact, backend) as backbone:
        outputs = [_run(backbone, batch) for batch in batches]
        served_by = " ".join([backbone.backend, *backbone.providers[:1]])
    del backbone
    memory.give_back()
    return [output if isinstance(output, list) else [output] for output in outputs], served_by


def _run(backbone: Backbone, batch: Any) -> Any:
    try:
        return backbone(batch)
    except Exception as error:  # whatever a runtime raises for a graph that only its export's batch fits
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(f"the artifact does not run on a batch {list(batch.shape)}: {lines[0]}") from error
