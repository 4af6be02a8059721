"""Backbones and artifacts as JSON values: what `list` and `info` tell of them."""

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from runtime.manifest import Artifact, StoredFile
from runtime.out_indices import label
from runtime.selection import verified_by
from runtime.spec import BackboneSpec


def backbone(spec: BackboneSpec) -> dict[str, Any]:
    """Return what is declared about a backbone."""
    return {
        "model": spec.name,
        "aliases": list(spec.aliases),
        "preprocessing": asdict(spec.preprocessing),
        "depth": spec.depth,
        "patch_size": spec.patch_size,
        "licence": spec.licence,
        "gated": spec.gated,
        "source": str(spec.source) if spec.source else None,
        "options": {name: _default(spec.defaults[name]) for name in spec.options},
        "extra": spec.extra,
    }


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return "required"
    try:
        json.dumps(value)
    except TypeError:
        return repr(value)
    return value


def artifact(published: Artifact, problems: Mapping[StoredFile, str]) -> dict[str, Any]:
    """Return what the manifest tells of an artifact, its parity as the worst over all outputs.

    Args:
        published: The artifact.
        problems: What is wrong with files of the model.
    """
    measured = published.facts.get("parity", {})
    return {
        "key": published.key.to_json(),
        "is": published.key.describe(),
        "variant": label(published.key.out_indices),
        "form": str(published.key.form),
        "graph": published.graph.name,
        "graph_bytes": published.graph.bytes,
        "weight_bytes": sum(file.bytes for file in published.files[1:]),
        "outputs": [{"name": output.name, "shape": list(output.shape)} for output in published.outputs],
        "parity": parity(published),
        "measured_on": measured.get("served_by"),
        "served_by": list(verified_by(published)),
        "versions": dict(published.facts.get("versions", {})),
        "problems": [f"{file.name} {problems[file]}" for file in published.files if file in problems],
    }


def parity(published: Artifact) -> dict[str, float | None]:
    """Return the worst numbers over all outputs; `None` for what the manifest does not tell."""
    outputs = published.facts.get("parity", {}).get("outputs", ())
    return {
        "min_cosine": _worst(min, (output.get("min_cosine") for output in outputs)),
        "min_token_cosine": _worst(min, (output.get("min_token_cosine") for output in outputs)),
        "relative_rms": _worst(max, (output.get("relative_rms") for output in outputs)),
        "max_abs": _worst(max, (output.get("max_abs") for output in outputs)),
    }


def _worst(choose: Any, values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def stored_bytes(artifacts: Iterable[Artifact]) -> int:
    """Return the bytes of all files of a model's artifacts, shared ones counted once."""
    return sum(file.bytes for file in {file for artifact in artifacts for file in artifact.files})
