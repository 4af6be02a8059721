"""What load_model would do with a request, and why: the very choice it makes, as JSON values."""

from functools import partial
from typing import Any

from runtime.artifacts import named_address, open_store, place
from runtime.commands import load_call
from runtime.load import device_of, obstacles, published
from runtime.manifest import Form, Manifest
from runtime.request import Request
from runtime.selection import Candidate, Selection, candidates, consider, preference, select
from runtime.terminal import described


def explain(request: Request) -> dict[str, Any]:
    """Return a backbone's facts, its artifacts, and each backend's chance to answer the request.

    Raises:
        ManifestError: Its manifest cannot be used.
        HubError: A repository of the hub does not give it.
    """
    request, manifest = published(request)
    fetched = named_address(request.artifacts) is not None  # by load_model, and checked then
    problems = {} if fetched else open_store(request.artifacts).problems(manifest)
    where, hindered = partial(device_of, request), obstacles(request)
    chosen = select(request, manifest, hindered, where)
    refused = refusal(request, chosen)
    found = [consider(request, backend, manifest, hindered, where) for backend in candidates(request, where)]
    serves = None if refused else chosen.backend
    return {
        **described.backbone(request.spec),
        "embedding": _width(manifest),
        "artifacts": place(request.artifacts),
        "bytes": described.stored_bytes(manifest.artifacts),
        "built": [described.artifact(artifact, problems) for artifact in manifest.artifacts],
        "serves": serves,
        "refused": refused,
        "measured": preference(request, serves, where(serves)) if serves else None,
        "load": load_call(request, _form(chosen, request), serves) if serves else None,
        "candidates": [_chance(candidate, serves) for candidate in found],
    }


def refusal(request: Request, chosen: Selection) -> str | None:
    """Return why load_model would raise instead of serving; `None` if it would not."""
    if chosen.backend is None:
        named = f"backend={request.backend!r} was named, and has no substitute"
        return "no backend can" if request.backend == "auto" else named
    if chosen.backend == "eager" and chosen.rejected and request.on_fallback == "error":
        return "eager torch could, and is ruled out by on_fallback='error'"
    return None


def _chance(candidate: Candidate, serves: str | None) -> dict[str, Any]:
    return {
        "backend": candidate.backend,
        "verdict": _verdict(candidate, serves),
        "from": candidate.artifact.key.describe() if candidate.artifact else None,
        "reason": str(candidate.rejected) if candidate.rejected else None,
    }


def _verdict(candidate: Candidate, serves: str | None) -> str:
    if candidate.rejected:
        return "rejected"
    if candidate.backend == serves:
        return "serves"
    return "ruled out" if serves is None else "could serve, comes later"


def _form(chosen: Selection, request: Request) -> Form:
    """Return the form that is served from; for eager torch one of its own name."""
    return chosen.artifact.key.form if chosen.artifact else Form("eager", "any", request.precision, request.input)


def _width(manifest: Manifest) -> int | None:
    """Return the length of the embedding, as far as an artifact tells it."""
    shapes = [a.outputs[0].shape for a in manifest.artifacts if a.key.out_indices is None and a.outputs]
    return next((shape[1] for shape in shapes if len(shape) == 2 and isinstance(shape[1], int)), None)
