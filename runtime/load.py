"""load_model: a name to a Backbone. What can serve is a pure choice with reasons; this file carries it out."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from runtime import registry
from runtime.artifacts import fetched_store, named_address, open_store
from runtime.backbone import Backbone
from runtime.backends import Session, openvino
from runtime.commands import build_command
from runtime.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    BackboneError,
    BackendFallbackWarning,
    DependencyError,
    DeviceError,
    PrecisionWarning,
)
from runtime.instructions import cpu_flags, saturates, saturation
from runtime.machine import installed, nvidia_driver, onnxruntime_distributions
from runtime.manifest import Artifact, Manifest
from runtime.out_indices import OutIndices
from runtime.providers import CUDA, NO_DRIVER, ON_GPU, check_installation, parse_device
from runtime.request import Request, make_request
from runtime.requirements import missing_for_eager
from runtime.selection import select


def load_model(
    model_name: str,
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    out_indices: OutIndices = None,
    backend: Literal["auto", "onnx", "openvino", "pt2", "torchscript", "eager"] | None = None,
    device: str | None = None,
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = None,
    input: Literal["float32", "uint8"] | None = None,
    on_fallback: Literal["warn", "error"] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    providers: Sequence[str] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    threads: int | None = None,
    weights: Literal["pretrained", "random"] | str | None = None,
    seed: int | None = None,
    image_size: int | tuple[int, ...] | Literal["dynamic"] | None = None,
    verify: Literal["size", "full"] | None = None,
    load: Literal["throughput", "fast"] | None = None,
    batch_sizes: Sequence[int] | None = None,
    reuse_outputs: bool | None = None,
    cuda_graphs: bool | None = None,
    gpu_mem_limit: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Backbone:
    """Return the backbone registered as `model_name`, ready to be called.

    Args:
        model_name: Registry name, see `list_models()`.
        model_kwargs: Any of the keywords below, as a dict (for YAML configs).
        out_indices: `None` for the embedding [B, D]; n for the last n feature maps; a sequence of block indices for
            those, in ascending block order. Maps are [B, C, h, w].
        backend: `onnx`, `openvino` (the same ONNX artifacts on CPUs), `pt2` (compiled by AOTInductor), `torchscript`
            or `eager`; `auto` (the default) is the fastest that can serve, by the measurements in `info["measured"]`;
            with `load="fast"`, `reuse_outputs` or `providers`, which are onnxruntime's, onnx comes first.
        device: `None` for CUDA if it truly starts, else the CPU; `cpu`; `cuda` or `cuda:1`, which then must start.
        precision: `fp32` (the default), `fp16` (CUDA), `bf16` (CUDA; on CPUs with openvino or pt2) or `int8` (CPUs).
            Inputs and outputs are float32 in each.
        input: `float32` (the default: normalised [B, C, H, W]) or `uint8`: images [B, H, W, 3], normalised inside.
        on_fallback: When there is no artifact: `warn` (the default: eager torch, with one BackendFallbackWarning) or
            `error`. The environment variable BACKBONE_ON_FALLBACK sets the default.
        artifacts: Folder of built artifacts, see `runtime.artifacts.default_root`; or a repository of the hub,
            `hf://ORG/REPO@REVISION`, of which only what is served is fetched, into the user's cache. The environment
            variable BACKBONE_ARTIFACTS sets the default of both.
        providers: onnxruntime execution providers, instead of `device`; the first must start. With
            "TensorrtExecutionProvider" engines are kept in the user's cache folder, one per artifact, GPU and versions;
            it multiplies float32 in TF32.
        provider_options: One dict per provider.
        threads: CPU threads of the onnx backend (of torch: for the process); by default every CPU it may use.
        weights: `pretrained` (the default); `random`, loud random weights drawn from `seed`; or `checkpoint:<digits>`,
            what was built from a local file with that SHA-256, where the file itself is not at hand.
        seed: Seed of random weights, 0 by default.
        image_size: Side in pixels, (height, width), (depth, height, width) of a volume, or `dynamic` for any multiple
            of the patch; by default the publisher's size.
        checkpoint_path: A local file of published weights, in the publisher's own layout, instead of a download.
        verify: `size` (the default) compares the artifact's file sizes with its manifest, `full` their SHA-256.
        load: `throughput` (the default) or `fast`: onnxruntime on a CPU then uses the weights as they lie in the file,
            mapped and shared with other processes, instead of packing a copy; a giant loads in 0.2 s instead
            of half a minute and is a tenth to a quarter slower.
        batch_sizes: Run batches of these sizes only, such as (1, 8, 32, 64): what is between is padded, what is larger
            is split, so that memory stays the same. On every backend; results are those of the images alone.
        reuse_outputs: onnx: a thread's next call may overwrite what its last call returned. Copy what you keep.
        cuda_graphs: onnx on CUDA: capture each of `batch_sizes` as a CUDA graph when loading, for latency.
        gpu_mem_limit: onnx on CUDA: bytes that the session may take for weights and work.
        **options: The backbone's own options, such as `include_patch_tokens`.

    Raises:
        UnknownModelError: With the nearest names.
        OptionError: A keyword that neither load_model nor the backbone knows, or a value out of range.
        OutIndicesError: No such feature maps.
        ArtifactError: An artifact is damaged, or missing with `on_fallback="error"`; a repository cannot be read.
        DeviceError, DependencyError, WeightsError: What was asked for cannot run here.
    """
    explicit = {
        "out_indices": out_indices,
        "backend": backend,
        "device": device,
        "precision": precision,
        "input": input,
        "on_fallback": on_fallback,
        "artifacts": artifacts,
        "providers": providers,
        "provider_options": provider_options,
        "threads": threads,
        "weights": weights,
        "seed": seed,
        "image_size": image_size,
        "verify": verify,
        "load": load,
        "batch_sizes": batch_sizes,
        "reuse_outputs": reuse_outputs,
        "cuda_graphs": cuda_graphs,
        "gpu_mem_limit": gpu_mem_limit,
        "checkpoint_path": checkpoint_path,
    }
    given = {name: value for name, value in explicit.items() if value is not None} | options
    request = make_request(registry.find(model_name), model_kwargs, given)
    return serve(request)


def serve(request: Request) -> Backbone:
    """Return the backbone that answers `request`; see load_model."""
    request.size, request.canonical  # noqa: B018  (raise on bad values before anything is read)
    manifest = Manifest(request.spec.name)
    if request.backend != "eager":
        request, manifest = published(request)
    selection = select(request, manifest, obstacles(request), partial(device_of, request))
    if selection.backend is None:
        raise _most_telling(selection.rejected)(selection.reasons)
    if selection.backend == "eager" and selection.rejected:
        # A device stays what it is: what can be built or installed is told first.
        first = next((r for r in selection.rejected if not isinstance(r, DeviceError)), selection.rejected[0])
        if request.on_fallback == "error":
            raise type(first)(f"{first}\nServing it by eager torch is ruled out by on_fallback='error'.")
        until = "Eager torch serves it" if isinstance(first, DeviceError) else "Until then eager torch serves it"
        warnings.warn(f"{first}\n{until}.", BackendFallbackWarning, stacklevel=3)
    try:
        backbone = Backbone(request, selection.backend, selection.artifact, open_session, selection.reasons)
    except ArtifactCorruptError:
        if published(request)[1] == manifest:
            raise
        return serve(request)  # a build replaced the artifact between the look and the load
    if _cuda_did_not_start(request, selection.artifact, backbone):
        backbone.close()
        return serve(replace(request, device="cpu", gpu_mem_limit=None))
    if request.precision == "int8" and backbone.device == "cpu" and saturates(cpu_flags()):
        warnings.warn(saturation(request.spec.name), PrecisionWarning, stacklevel=3)
    return backbone


def published(request: Request) -> tuple[Request, Manifest]:
    """Return the request, which from then on names a commit and not a branch, and what is published of the backbone.

    Raises:
        ManifestError: It cannot be used.
        HubError: It is in a repository of the hub that does not give it.
    """
    if named_address(request.artifacts) is None:
        return request, open_store(request.artifacts).read(request.spec.name)
    from runtime.sharing import cached

    pinned = cached.pin(request)
    return pinned, cached.published(pinned)


def serve_artifact(request: Request, backend: str, artifact: Artifact) -> Backbone:
    """Return a backbone that serves this very artifact on the device that `request` names."""
    return Backbone(request, backend, artifact, open_session)


def _most_telling(reasons: Sequence[BackboneError]) -> type[BackboneError]:
    """Return the error to raise for several reasons: an artifact can be built, a device chosen, a package installed."""
    kinds = {type(reason) for reason in reasons}
    return next(kind for kind in (ArtifactNotFoundError, DeviceError, DependencyError) if kind in kinds)


def _cuda_did_not_start(request: Request, artifact: Artifact | None, backbone: Backbone) -> bool:
    """Return whether a graph made for CUDA was chosen, as a driver is there, and then ran on the CPU."""
    if artifact is None or artifact.key.target != "cuda" or request.device is not None:
        return False
    return request.providers is None and backbone.device == "cpu"


def device_of(request: Request, backend: str) -> str:
    """Return where `backend` would run, `cpu` or `cuda`, as far as that is known without starting it."""
    if request.providers is not None and backend == "onnx":
        return "cuda" if request.providers[:1] and request.providers[0] in ON_GPU else "cpu"
    kind, _ = parse_device(request.device)
    if kind is not None:
        return kind
    if backend == request.backend == "openvino" or not nvidia_driver():
        return "cpu"
    if backend == "openvino":
        return "cuda"  # beside a GPU nobody wants the CPU unasked
    if backend == "onnx":
        import onnxruntime

        return "cuda" if CUDA in onnxruntime.get_available_providers() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def obstacles(request: Request) -> dict[str, BackboneError]:
    """Return the backends that cannot run here, and why."""
    found: dict[str, BackboneError] = {}
    try:
        check_installation(onnxruntime_distributions(), installed("onnxruntime"))
    except DependencyError as error:
        found["onnx"] = error
    if problem := openvino.obstacle(request):
        found["openvino"] = problem
    hint = missing_for_eager(request.spec)
    if not installed("torch"):
        found |= {backend: DependencyError(f"backend={backend!r}: {hint}") for backend in ("pt2", "torchscript")}
    if hint is not None:
        refusal = "backend='eager':" if request.backend == "eager" else "Eager torch cannot serve it either:"
        found["eager"] = DependencyError(f"{refusal} {hint}")
    return _without_driver(request) | found


def _without_driver(request: Request) -> dict[str, BackboneError]:
    """Return what cannot start the CUDA that `request` names, for that takes a driver: told without starting it."""
    if parse_device(request.device)[0] != "cuda" or nvidia_driver():
        return {}
    reason = DeviceError(f"device={request.device!r}: {NO_DRIVER}. Or use device='cpu'.")
    return dict.fromkeys(("onnx", "pt2", "torchscript", "eager"), reason)


def open_session(request: Request, backend: str, artifact: Artifact | None) -> Session:
    """Return a session of `backend`; artifacts are checked against the manifest first."""
    if artifact is None:
        from runtime.backends import eager

        return eager.load(request)
    try:
        return _open_artifact(request, backend, artifact)
    except ArtifactCorruptError as error:
        if named_address(request.artifacts):
            raise ArtifactCorruptError(f"{error}\nDelete it and load again: it is fetched anew.") from error
        command = build_command(request, artifact.key.form)
        raise ArtifactCorruptError(f"{error}\nBuild it again: {command} --force") from error


def _open_artifact(request: Request, backend: str, artifact: Artifact) -> Session:
    if address := named_address(request.artifacts):
        from runtime.sharing import cached

        cached.bring(request, artifact)
    store = fetched_store(address) if address else open_store(request.artifacts)
    graph = store.check(request.spec.name, artifact, full=request.verify == "full")[0]
    load: Callable[[Path, Request], Session] = import_module(f"runtime.backends.{backend}").load
    return load(graph, request)
