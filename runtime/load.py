"""load_model: a name to a Backbone. What can serve is a pure choice with reasons; this file carries it out."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime import registry
from runtime.artifacts import open_store
from runtime.backbone import Backbone
from runtime.backends import Session
from runtime.commands import build_command
from runtime.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    BackendFallbackWarning,
    DependencyError,
)
from runtime.machine import installed, onnxruntime_distributions
from runtime.manifest import Artifact, Manifest
from runtime.out_indices import OutIndices
from runtime.providers import check_installation
from runtime.request import Request, make_request
from runtime.requirements import missing_for_eager

PREFERENCE = {
    "auto": ("onnx", "torchscript", "eager"),
    "onnx": ("onnx", "eager"),
    "torchscript": ("torchscript", "eager"),
    "eager": ("eager",),
}


def load_model(
    model_name: str,
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    out_indices: OutIndices = None,
    backend: Literal["auto", "onnx", "torchscript", "eager"] | None = None,
    device: str | None = None,
    precision: Literal["fp32"] | None = None,
    on_fallback: Literal["warn", "error"] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    providers: Sequence[str] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    threads: int | None = None,
    weights: Literal["pretrained", "random"] | str | None = None,
    seed: int | None = None,
    image_size: int | tuple[int, ...] | Literal["dynamic"] | None = None,
    verify: Literal["size", "full"] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Backbone:
    """Return the backbone registered as `model_name`, ready to be called.

    Args:
        model_name: Registry name, see `list_models()`.
        model_kwargs: Any of the keywords below, as a dict (for YAML configs).
        out_indices: `None` for the embedding [B, D]; n for the last n feature maps; a sequence of block indices for
            those, in ascending block order. Maps are [B, C, h, w].
        backend: `auto` (the default: onnx, else torchscript, else eager), `onnx`, `torchscript` or `eager`.
        device: `None` for CUDA if it truly starts, else the CPU; `cpu`; `cuda` or `cuda:1`, which then must start.
        precision: `fp32`.
        on_fallback: When there is no artifact: `warn` (the default: eager torch, with one BackendFallbackWarning) or
            `error`. The environment variable BACKBONE_ON_FALLBACK sets the default.
        artifacts: Folder of built artifacts; see `runtime.artifacts.default_root`.
        providers: onnxruntime execution providers, instead of `device`; the first must start.
        provider_options: One dict per provider.
        threads: CPU threads of the onnx backend (of torch: for the process); by default every CPU it may use.
        weights: `pretrained` (the default); `random`, loud random weights drawn from `seed`; or `checkpoint:<digits>`,
            what was built from a local file with that SHA-256, where the file itself is not at hand.
        seed: Seed of random weights, 0 by default.
        image_size: Side in pixels, (height, width), (depth, height, width) of a volume, or `dynamic` for any multiple
            of the patch; by default the publisher's size.
        checkpoint_path: A local file of published weights, in the publisher's own layout, instead of a download.
        verify: `size` (the default) compares the artifact's file sizes with its manifest, `full` their SHA-256.
        **options: The backbone's own options, such as `include_patch_tokens`.

    Raises:
        UnknownModelError: With the nearest names.
        OptionError: A keyword that neither load_model nor the backbone knows, or a value out of range.
        OutIndicesError: No such feature maps.
        ArtifactError: An artifact is damaged, or missing with `on_fallback="error"`.
        DeviceError, DependencyError, WeightsError: What was asked for cannot run here.
    """
    explicit = {
        "out_indices": out_indices,
        "backend": backend,
        "device": device,
        "precision": precision,
        "on_fallback": on_fallback,
        "artifacts": artifacts,
        "providers": providers,
        "provider_options": provider_options,
        "threads": threads,
        "weights": weights,
        "seed": seed,
        "image_size": image_size,
        "verify": verify,
        "checkpoint_path": checkpoint_path,
    }
    given = {name: value for name, value in explicit.items() if value is not None} | options
    request = make_request(registry.find(model_name), model_kwargs, given)
    return serve(request)


@dataclass(frozen=True)
class Selection:
    """What will serve, and why what was preferred to it will not."""

    backend: str
    artifact: Artifact | None
    rejected: tuple[str, ...]


def select(request: Request, manifest: Manifest, obstacles: Mapping[str, str]) -> Selection | None:
    """Return the most preferred backend that can serve; `None` when none can.

    Args:
        request: What was asked for.
        manifest: What is published of the model.
        obstacles: Backends that cannot run on this machine, and why.
    """
    rejected: list[str] = []
    for backend in PREFERENCE[request.backend]:
        if backend in obstacles:
            rejected.append(obstacles[backend])
            continue
        if backend == "eager":
            return Selection(backend, None, tuple(rejected))
        artifact = find_artifact(request, manifest, backend)
        if artifact is not None:
            return Selection(backend, artifact, tuple(rejected))
        rejected.append(missing(request, manifest, backend))
    return None


def find_artifact(request: Request, manifest: Manifest, format: str) -> Artifact | None:
    """Return the published artifact that answers `request` in `format`."""
    key = request.key(format)
    return next((a for a in manifest.artifacts if a.key == key), None)


def missing(request: Request, manifest: Manifest, format: str) -> str:
    """Return the sentence that says what is not built, what is, and how to build it."""
    built = "; ".join(a.key.describe() for a in manifest.artifacts if a.key.format == format)
    where = open_store(request.artifacts).root
    return (
        f"No {format} artifact of {request.spec.name!r} for {request.key(format).describe()} in {where}. "
        f"Built: {built or 'none'}.\nBuild it with: {build_command(request, format)}"
    )


def serve(request: Request) -> Backbone:
    """Return the backbone that answers `request`; see load_model."""
    request.size, request.canonical  # noqa: B018  (raise on bad values before anything is read)
    store = open_store(request.artifacts)
    manifest = Manifest(request.spec.name) if request.backend == "eager" else store.read(request.spec.name)
    obstacles = _obstacles(request)
    selection = select(request, manifest, obstacles)
    if selection is None:
        candidates = PREFERENCE[request.backend]
        reasons = [obstacles[b] if b in obstacles else missing(request, manifest, b) for b in candidates]
        error = DependencyError if set(candidates) <= set(obstacles) else ArtifactNotFoundError
        raise error("\n".join(reasons))
    fallback = "\n".join(selection.rejected) or None
    if selection.backend == "eager" and fallback:
        if request.on_fallback == "error":
            raise ArtifactNotFoundError(
                f"{selection.rejected[0]}\nServing it by eager torch is ruled out by on_fallback='error'."
            )
        warnings.warn(
            f"{selection.rejected[0]}\nUntil then eager torch serves it.", BackendFallbackWarning, stacklevel=3
        )
    try:
        return Backbone(request, selection.backend, selection.artifact, open_session, fallback)
    except ArtifactCorruptError:
        if store.read(request.spec.name) == manifest:
            raise
        return serve(request)  # a build replaced the artifact between the look and the load


def _obstacles(request: Request) -> dict[str, str]:
    """Return the backends that cannot run here; what the caller named explicitly raises instead."""
    obstacles: dict[str, str] = {}
    if request.backend in ("auto", "onnx"):
        try:
            check_installation(onnxruntime_distributions(), installed("onnxruntime"))
        except DependencyError as error:
            if request.backend == "onnx":
                raise
            obstacles["onnx"] = str(error)
    hint = missing_for_eager(request.spec)
    if not installed("torch"):
        obstacles["torchscript"] = f"backend='torchscript': {hint}"
    if hint is not None:
        refusal = "backend='eager':" if request.backend == "eager" else "Eager torch cannot serve it either:"
        obstacles["eager"] = f"{refusal} {hint}"
    return obstacles


def open_session(request: Request, backend: str, artifact: Artifact | None) -> Session:
    """Return a session of `backend`; artifacts are checked against the manifest first."""
    if artifact is None:
        from runtime.backends import eager

        return eager.load(request)
    try:
        return _open_artifact(request, backend, artifact)
    except ArtifactCorruptError as error:
        raise ArtifactCorruptError(f"{error}\nBuild it again: {build_command(request, backend)} --force") from error


def _open_artifact(request: Request, backend: str, artifact: Artifact) -> Session:
    store = open_store(request.artifacts)
    graph = store.check(request.spec.name, artifact, full=request.verify == "full")[0]
    if backend == "onnx":
        from runtime.backends import onnx

        return onnx.load(graph, request)
    from runtime.backends import torchscript

    return torchscript.load(graph, request)
