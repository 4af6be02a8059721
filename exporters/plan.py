"""What a build would do, and why: pure decisions, no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from exporters.staleness import stale
from runtime import registry
from runtime.artifacts import Store
from runtime.errors import BackboneError, OptionError, UnknownModelError
from runtime.manifest import INPUTS, TARGETS, Artifact, Form
from runtime.manifest import PRECISIONS as ALL_PRECISIONS
from runtime.out_indices import OutIndices, label
from runtime.request import Request

# In the order in which they are written: writing TorchScript empties the module.
FORMATS = ("onnx", "pt2", "torchscript")
DEFAULT_FORMATS = ("onnx", "torchscript")
# Which precisions a graph can be stored in, by format and target.
PRECISIONS = {
    ("onnx", "cpu"): ("fp32", "bf16", "int8"),
    ("onnx", "cuda"): ("fp32", "fp16", "bf16"),
    ("pt2", "cpu"): ("fp32", "bf16"),
    ("pt2", "cuda"): ("fp32", "fp16", "bf16"),
    ("torchscript", "any"): ("fp32",),
}
DEFAULT_VARIANTS: tuple[OutIndices, ...] = (None, 1, 4)


@dataclass(frozen=True)
class Job:
    """One variant of one model: what one process builds.

    Attributes:
        request: The outputs, weights, image size and options to build.
        forms: How to store it.
        force: Build even what is up to date.
        threads: CPU threads this job may use; `None` for all.
        imports: Modules that register further backbones.
        max_params: Skip a backbone that has more parameters.
        calibration: Folder of images that int8 ranges are measured on; `None` for the bundled tissue, `none` for none.
        task: What its process does: `build`, or `verify` what is published.
    """

    request: Request
    forms: tuple[Form, ...]
    force: bool = False
    threads: int | None = None
    imports: tuple[str, ...] = ()
    max_params: int | None = None
    calibration: str | None = None
    task: str = "build"

    @property
    def name(self) -> str:
        """Registry name and variant, for people."""
        return f"{self.request.spec.name} [{label(self.request.canonical)}]"


@dataclass(frozen=True)
class Step:
    """One artifact of a job: build it or skip it, and why."""

    form: Form
    action: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of one artifact: `built`, `verified`, `skipped` or `failed`.

    Attributes:
        seconds: Since its process began.
        bytes: Of its graph and the weight data it reads.
        peak_bytes: Largest resident memory of the process that built it; 0 when none did.
        min_cosine, max_abs, relative_rms: Worst over all outputs and verification inputs.
    """

    model: str
    variant: str
    form: Form
    status: str
    note: str = ""
    seconds: float = 0.0
    bytes: int = 0
    peak_bytes: int = 0
    min_cosine: float | None = None
    max_abs: float | None = None
    relative_rms: float | None = None
    detail: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values, those of its form among the others."""
        data = asdict(self)
        return {**data, **data.pop("form")}


def names(patterns: Sequence[str], exclude: Sequence[str], everything: bool) -> list[str]:
    """Return the registered names asked for, each once, in the order asked.

    Raises:
        UnknownModelError: A name is not registered, or a glob matches nothing.
    """
    found: list[str] = registry.list_models() if everything else []
    for pattern in patterns:
        if any(c in pattern for c in "*?["):
            matches = registry.list_models(pattern)
            if not matches:
                raise UnknownModelError(f"{pattern!r} matches no registered backbone. See runtime.list_models().")
            found += matches
        else:
            found.append(registry.find(pattern).name)
    kept = [n for n in dict.fromkeys(found) if not any(fnmatchcase(n, e) for e in exclude)]
    if not kept:
        raise UnknownModelError(f"Nothing is left to build: --exclude {' '.join(exclude)} leaves out every name.")
    return kept


def forms(
    formats: Iterable[str], targets: Iterable[str], precisions: Iterable[str], inputs: Iterable[str]
) -> tuple[Form, ...]:
    """Return the forms that exist among all combinations, each once, in the order in which they are written.

    Raises:
        OptionError: None of them exists.
    """
    asked = {
        Form(format, "any" if format == "torchscript" else target, precision, input if format == "onnx" else "float32")
        for format, target, precision, input in product(formats, targets, precisions, inputs)
    }
    found = [form for form in asked if form.precision in PRECISIONS[form.format, form.target]]
    if not found:
        exist = "; ".join(f"{format} for {target}: {', '.join(p)}" for (format, target), p in PRECISIONS.items())
        raise OptionError(f"No {' or '.join(sorted(map(str, asked)))} can be built. What exists is {exist}.")
    return tuple(sorted(found, key=_order))


def _order(form: Form) -> tuple[Any, ...]:
    places = (FORMATS, (*TARGETS, "any"), ALL_PRECISIONS, INPUTS)
    values = (form.format, form.target, form.precision, form.input)
    return tuple(place.index(value) for place, value in zip(places, values, strict=True))


def plan(job: Job, store: Store) -> list[Step]:
    """Return what the job would do for each of its forms.

    Raises:
        ManifestError: The store's manifest cannot be read.
    """
    published = {a.key: a for a in store.read(job.request.spec.name).artifacts}
    return [_step(job, form, published.get(job.request.key(form)), store) for form in job.forms]


def _step(job: Job, form: Form, artifact: Artifact | None, store: Store) -> Step:
    reason = "no artifact" if artifact is None else stale(artifact, job.request, job.calibration, store)
    if reason:
        return Step(form, "build", reason)
    if job.force:
        return Step(form, "build", "--force")
    return Step(form, "skip", "up to date")


def skipped(job: Job, steps: Iterable[Step]) -> list[Outcome]:
    """Return the outcomes of the artifacts that need no build."""
    return [outcome(job, step.form, "skipped", note=step.reason) for step in steps if step.action == "skip"]


def too_large(job: Job, parameters: int) -> list[Step]:
    """Return the steps of a job whose backbone has that many parameters: all skipped if it may not have so many."""
    if job.max_params is None or parameters <= job.max_params:
        return []
    reason = f"{parameters / 1e6:,.1f} M parameters, more than --max-params allows"
    return [Step(form, "skip", reason) for form in job.forms]


def failed(job: Job, forms: Iterable[Form], error: BaseException, **facts: Any) -> list[Outcome]:
    """Return the outcomes of artifacts that failed for one reason."""
    text = str(error) if isinstance(error, BackboneError) else f"{type(error).__name__}: {error}"
    return [outcome(job, form, "failed", note=text, **facts) for form in forms]


def outcome(job: Job, form: Form, status: str, **facts: Any) -> Outcome:
    """Return an outcome of one of the job's artifacts."""
    return Outcome(job.request.spec.name, label(job.request.canonical), form, status, **facts)
