"""Why a published artifact must be built again: pure decisions, no torch."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from exporters.int8.calibration import calibration_id
from runtime.artifacts import Store, file_problem
from runtime.download import fetch
from runtime.errors import InputError, WeightsError
from runtime.facts import LocalFile
from runtime.manifest import RECIPE, Artifact
from runtime.request import Request
from runtime.requirements import EXTRAS
from runtime.spec import BackboneSpec

_TOOLS = {
    "onnx": ("torch", "timm", "onnx", "onnx-ir", "onnxscript"),
    "torchscript": ("torch", "timm"),
    "pt2": ("torch", "timm"),
}


def versions(format: str, spec: BackboneSpec) -> dict[str, str]:
    """Return the versions that decide what a build of `spec` in `format` gives."""
    needed = (*_TOOLS[format], *EXTRAS.get(spec.extra or "", ()))
    found = {name: importlib.metadata.version(name) for name in needed}
    return {"recipe": str(RECIPE), **found}


def stale(artifact: Artifact, request: Request, calibration: str | None, store: Store) -> str | None:
    """Return why a published artifact must be built again for a request, or `None`.

    Args:
        artifact: What the store has.
        request: What is to be built.
        calibration: Folder of the images for int8; see `calibration_id`.
        store: Where the artifact is.
    """
    folder = store.folder(request.spec.name)
    for file in artifact.files:
        if problem := file_problem(folder / file.name, file, full=False):
            return f"damaged: {file.name} {problem}"
    if changed := _changed(artifact.facts.get("versions", {}), versions(artifact.key.format, request.spec)):
        return f"stale: {changed}"
    if artifact.key.precision == "int8" and (other := _recalibrated(artifact, calibration)):
        return f"stale: {other}"
    declared = str(request.source) if request.source else None
    built = artifact.facts.get("source", {}).get("id")
    if built != declared:
        return f"stale: source {built} -> {declared}"
    return _replaced(artifact, request) if artifact.key.weights == "pretrained" else None


def _replaced(artifact: Artifact, request: Request) -> str | None:
    """Return why a local checkpoint is not the one built from; one that is gone is no reason to build again."""
    source = request.spec.source
    if not isinstance(source, LocalFile):
        return None
    try:
        _, revision = fetch(source, request.spec.name, gated=False)
    except WeightsError:
        return None
    built = artifact.facts.get("source", {}).get("revision")
    return None if built == revision else f"stale: {Path(source.path).name} {built} -> {revision}"


def _recalibrated(artifact: Artifact, folder: str | None) -> str | None:
    """Return what differs between the calibration built with and the one asked for now."""
    built = artifact.facts.get("int8", {}).get("calibration")
    try:
        now = calibration_id(folder)
    except InputError as error:
        return str(error)  # and the build will fail with it
    return None if built == now else f"calibration {built} -> {now}"


def _changed(built: Mapping[str, str], now: Mapping[str, str]) -> str:
    return ", ".join(
        f"{tool} {built.get(tool, 'unknown')} -> {now[tool]}" for tool in now if built.get(tool) != now[tool]
    )
