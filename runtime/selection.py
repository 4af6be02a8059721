"""Which backend and artifact answer a request: a pure choice, with the reason why each other candidate was rejected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.artifacts import named_address, place
from runtime.commands import build_command
from runtime.errors import ArtifactNotFoundError, BackboneError, DeviceError
from runtime.manifest import DATA, Artifact, Form, Manifest
from runtime.ranking import order, reason
from runtime.request import Request

PREFERENCE = {
    "onnx": ("onnx", "eager"),
    "openvino": ("openvino", "eager"),
    "pt2": ("pt2", "eager"),
    "torchscript": ("torchscript", "eager"),
    "eager": ("eager",),
}
# What each backend reads, and the precisions it has by the device it runs on.
FORMAT = {"onnx": "onnx", "openvino": "onnx", "pt2": "pt2", "torchscript": "torchscript"}
RUNS = {
    ("onnx", "cpu"): ("fp32", "int8"),
    ("onnx", "cuda"): ("fp32", "fp16", "bf16"),
    ("openvino", "cpu"): ("fp32", "bf16", "int8"),
    ("pt2", "cpu"): ("fp32", "bf16"),
    ("pt2", "cuda"): ("fp32", "fp16", "bf16"),
    ("torchscript", "cpu"): ("fp32",),
    ("torchscript", "cuda"): ("fp32",),
    ("eager", "cpu"): ("fp32", "fp16", "bf16"),
    ("eager", "cuda"): ("fp32", "fp16", "bf16"),
}
# What runs for minutes where all else takes seconds: only for who names the backend.
CRAWLS = (("eager", "cpu", "fp16"),)


@dataclass(frozen=True)
class Selection:
    """What will serve, and why what was preferred to it will not.

    Attributes:
        backend: `None` when nothing can serve.
        artifact: What it serves from; `None` for eager torch.
        rejected: The reasons, in the order of preference; each is the error that it would be by itself.
    """

    backend: str | None
    artifact: Artifact | None
    rejected: tuple[BackboneError, ...]

    @property
    def reasons(self) -> str | None:
        """The reasons, one after the other; what hinders several is told once."""
        return "\n".join(dict.fromkeys(map(str, self.rejected))) or None


@dataclass(frozen=True)
class Candidate:
    """One backend's chance to answer a request.

    Attributes:
        backend: Its name.
        artifact: What it would serve from; `None` for eager torch.
        rejected: Why it cannot serve; `None` if it can.
    """

    backend: str
    artifact: Artifact | None
    rejected: BackboneError | None


def select(
    request: Request, manifest: Manifest, obstacles: Mapping[str, BackboneError], device_of: Callable[[str], str]
) -> Selection:
    """Return the most preferred backend that can serve. What was named, and cannot run here, has no substitute.

    Args:
        request: What was asked for.
        manifest: What is published of the model.
        obstacles: Backends that cannot run on this machine, and why.
        device_of: Where a backend would run, `cpu` or `cuda`; asked only for backends that are considered.
    """
    rejected: list[BackboneError] = []
    for backend in candidates(request, device_of):
        found = consider(request, backend, manifest, obstacles, device_of)
        if found.rejected is None:
            return Selection(backend, found.artifact, tuple(rejected))
        rejected.append(found.rejected)
        if backend == request.backend and not isinstance(found.rejected, ArtifactNotFoundError):
            break
    return Selection(None, None, tuple(rejected))


def candidates(request: Request, device_of: Callable[[str], str]) -> tuple[str, ...]:
    """Return the backends that may answer a request, the most preferred first."""
    if request.backend != "auto":
        return PREFERENCE[request.backend]
    measured = order(device_of("openvino"), request.precision)
    return ("onnx", *(b for b in measured if b != "onnx")) if request.of_onnxruntime else measured


def preference(request: Request, backend: str, device: str) -> str | None:
    """Return why `auto` prefers `backend` on a device: what was asked for, and what was measured."""
    measured = reason(backend, device, request.precision)
    if backend != "onnx" or not request.of_onnxruntime:
        return measured
    asked = f"{', '.join(request.of_onnxruntime)}: only onnxruntime can do that, so that onnx comes first"
    return f"{asked}; {measured}" if measured else asked


def consider(
    request: Request,
    backend: str,
    manifest: Manifest,
    obstacles: Mapping[str, BackboneError],
    device_of: Callable[[str], str],
) -> Candidate:
    """Return whether `backend` can answer a request, and from what; the arguments are those of `select`."""
    if obstacle := _obstacle(request, backend, obstacles, device_of):
        return Candidate(backend, None, obstacle)
    if backend == "eager":
        return Candidate(backend, None, None)
    wanted = forms(request, backend, device_of(backend))
    artifact = find_artifact(request, manifest, wanted)
    if artifact is not None and foreign(request, artifact):
        return Candidate(backend, None, ArtifactNotFoundError(unasked(request, [artifact])))
    if artifact is not None and backend in verified_by(artifact):
        return Candidate(backend, artifact, None)
    why = missing(request, manifest, wanted[0]) if artifact is None else unverified(request, artifact, backend)
    return Candidate(backend, None, ArtifactNotFoundError(why))


def _obstacle(
    request: Request, backend: str, obstacles: Mapping[str, BackboneError], device_of: Callable[[str], str]
) -> BackboneError | None:
    if backend in obstacles:
        return obstacles[backend]
    device = device_of(backend)
    if request.backend == "auto" and (backend, device, request.precision) in CRAWLS:
        return DeviceError(
            f"backend={backend!r} would take minutes for precision={request.precision!r} on device={device!r}, and "
            "serves it only when it is named. Use precision='fp32' or 'bf16', or a GPU."
        )
    why = unable(backend, device, request.precision)
    return DeviceError(why) if why else None


def unable(backend: str, device: str, precision: str) -> str | None:
    """Return why a backend cannot run a precision on a device, with what can; `None` if it can."""
    if precision in RUNS.get((backend, device), ()):
        return None
    here = [b for (b, d), precisions in RUNS.items() if d == device and precision in precisions]
    elsewhere = sorted({d for (b, d), precisions in RUNS.items() if b == backend and precision in precisions})
    own = ", ".join(RUNS.get((backend, device), ())) or "nothing"
    return (
        f"backend={backend!r} cannot run precision={precision!r} on device={device!r}, where it runs {own}. "
        f"On this device {precision} runs with backend={' or '.join(map(repr, here)) or 'none'}"
        + (f"; with backend={backend!r} on device={' or '.join(map(repr, elsewhere))}." if elsewhere else ".")
    )


def forms(request: Request, backend: str, device: str) -> tuple[Form, ...]:
    """Return the forms of an artifact that a backend can serve a request from on a device, the best first."""
    format = FORMAT[backend]
    if format == "torchscript":
        return (Form(format),)
    if format == "pt2":
        return (Form(format, device, request.precision),)
    made_for = request.form(format, device if backend == "onnx" else "cpu")
    other = request.form(format, "cuda" if device == "cpu" else "cpu")
    # A float32 graph runs everywhere; made for another device it is slower than it could be, not wrong.
    return (made_for, other) if backend == "onnx" and request.precision == "fp32" else (made_for,)


def find_artifact(request: Request, manifest: Manifest, wanted: tuple[Form, ...]) -> Artifact | None:
    """Return the published artifact that answers `request` in the first of the forms that there is."""
    published = {artifact.key: artifact for artifact in manifest.artifacts}
    keys = [request.key(form) for form in wanted]
    return next((published[key] for key in keys if key in published), None)


def foreign(request: Request, artifact: Artifact) -> bool:
    """Return whether an artifact is a program out of a repository of the hub, and its backend was not named."""
    return named_address(request.artifacts) is not None and artifact.key.format not in (*DATA, request.backend)


def unasked(request: Request, programs: Sequence[Artifact]) -> str:
    """Return the sentence that says why programs which answer a request do not serve it, and how they would."""
    formats = sorted({artifact.key.format for artifact in programs})
    return (
        f"{place(request.artifacts)} has it as {' and '.join(formats)}, a program of whoever pushed it, which nothing "
        f"runs unasked: if you trust them, ask for {' or '.join(f'backend={format!r}' for format in formats)}."
    )


def verified_by(artifact: Artifact) -> tuple[str, ...]:
    """Return the backends by which an artifact was verified, of those that run its format: only they may serve it."""
    first, *others = artifact.key.form.backends
    return (first, *(backend for backend in others if backend in artifact.facts.get("also_served_by", ())))


def unverified(request: Request, artifact: Artifact, backend: str) -> str:
    """Return the sentence that says by which backends an artifact was verified, and how to add one."""
    form = artifact.key.form
    return (
        f"The {form.format} artifact of {request.spec.name!r} for {artifact.key.describe()} was verified by "
        f"{', '.join(verified_by(artifact))}, not by {backend}: it was built where {backend} is not installed, or "
        f"its numbers did not pass.\nBuild it again where it is installed: {build_command(request, form)} --force"
    )


def missing(request: Request, manifest: Manifest, form: Form) -> str:
    """Return the sentence that says what is not built, what is, and how to build it."""
    built = "; ".join(a.key.describe() for a in manifest.artifacts if a.key.format == form.format)
    repository = named_address(request.artifacts)
    share = f"\nShare it with: python -m exporters.push {repository.repo} {request.spec.name}" if repository else ""
    programs = [a for a in manifest.artifacts if foreign(request, a) and _answers(request, a)]
    left_out = f"\n{unasked(request, programs)}" if programs else ""
    return (
        f"No {form.format} artifact of {request.spec.name!r} for {request.key(form).describe()} in "
        f"{place(request.artifacts)}. Built: {built or 'none'}.{left_out}\n"
        f"Build it with: {build_command(request, form)}{share}"
    )


def _answers(request: Request, artifact: Artifact) -> bool:
    """Return whether a program gives what was asked for, on some device; it takes both inputs."""
    return artifact.key == request.key(artifact.key.form) and artifact.key.precision == request.precision
