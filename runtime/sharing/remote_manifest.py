"""Manifests that somebody else wrote: nothing in them is believed that could do harm here. Standard library only."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.artifacts import MANIFEST
from runtime.errors import ManifestError
from runtime.manifest import Artifact, Manifest, StoredFile
from runtime.request import WEIGHTS_KEY

LARGEST = 64 << 20  # bytes of a manifest; a model with a hundred artifacts has about one million
_FILE = re.compile(r"[A-Za-z0-9_][\w,+=-]*(\.[\w,+=-]+)+", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_ADVICE = "The repository is damaged, or was not written by `python -m exporters.push`: ask who pushed it."


def parse(text: str, where: str, model: str, advice: str = _ADVICE) -> Manifest:
    """Return the manifest of `model` that was read from `where`; `advice` says what to do about one that is refused.

    Raises:
        ManifestError: It is no manifest, one of a newer release or of another model, or it lists a file that is not
            one plainly named file of the model's own folder.
    """
    manifest = Manifest.from_text(text, where, advice)
    if manifest.model != model:
        raise ManifestError(f"{where} is the manifest of {manifest.model!r}, not of {model!r}. {advice}")
    problem = _problem(manifest)
    if problem:
        raise ManifestError(f"{where} {problem}. {advice}")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    contents: dict[str, StoredFile] = {}
    for file in files_of(manifest.artifacts):
        if not _FILE.fullmatch(file.name) or file.name == MANIFEST or file.name.endswith(".part"):
            return f"lists {file.name!r}, which is no name that a build gives to a file"
        if file.bytes < 0 or not _SHA256.fullmatch(file.sha256):
            return f"lists {file.name!r} without a proper size and SHA-256"
        if contents.setdefault(file.name, file) != file:
            return f"lists {file.name!r} with two contents"
    if len({artifact.key for artifact in manifest.artifacts}) < len(manifest.artifacts):
        return "lists two artifacts with one key"
    if not all(artifact.key.describe().isprintable() for artifact in manifest.artifacts):
        return "lists an artifact whose key cannot be printed"
    if wrong := next((a for a in manifest.artifacts if not a.graph.name.endswith(f".{a.key.format}")), None):
        return f"lists {wrong.graph.name!r} as the graph of an artifact of format {wrong.key.format}"
    if wrong := next((a for a in manifest.artifacts if not WEIGHTS_KEY.fullmatch(a.key.weights)), None):
        return f"lists an artifact of the weights {wrong.key.weights!r}, which no build names so"
    return next((problem for a in manifest.artifacts if (problem := _wrong_facts(a.facts))), None)


def _wrong_facts(facts: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the facts that are read later, by load_model or for a model card."""
    for name in ("also_served_by", "parity", "passes", "preprocessing", "source", "versions"):
        if not isinstance(facts.get(name, {}), dict):
            return f"has {name!r} that is no object"
    outputs = facts.get("parity", {}).get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        return "has a parity whose outputs are no objects"
    if not all(isinstance(output.get("min_cosine", 0.0), int | float | None) for output in outputs):
        return "has a cosine that is no number"
    return None


def files_of(artifacts: Iterable[Artifact]) -> list[StoredFile]:
    """Return the files that artifacts list; what several share comes once."""
    return list(dict.fromkeys(file for artifact in artifacts for file in artifact.files))


def merge(known: Manifest, new: Iterable[Artifact], where: str) -> Manifest:
    """Return `known` with the artifacts `new`, which were read from `where`, each in the stead of the one with its key.

    Raises:
        ManifestError: A file would get another content than an artifact that stays was verified with.
    """
    merged = known.merged(new)
    contents: dict[str, StoredFile] = {}
    for file in files_of(merged.artifacts):
        if contents.setdefault(file.name, file) != file:
            raise ManifestError(
                f"{known.model}: {where} lists {file.name} with another content than what is there already. One of the "
                "two was altered: check both with `python -m exporters.verify --hash`, and delete the wrong one."
            )
    return merged
