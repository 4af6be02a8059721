"""The README.md of a repository of artifacts, written from its manifests alone. Pure."""

import json
from collections.abc import Sequence
from typing import Any

from exporters.redistribution import PERMITTING, Terms, terms_of
from runtime.errors import OptionError
from runtime.manifest import Artifact, Manifest
from runtime.sharing.address import is_address, parse_address

# By this a card is known to be ours; one that somebody wrote by hand is left alone.
MARK = "<!-- Written by `python -m exporters.push` from the manifests: the next push writes it again. -->"
# The hub spells a licence in small letters; one that it does not know is `other` there.
_KNOWN_TO_THE_HUB = {licence.lower() for licence in (*PERMITTING, "CC-BY-NC-ND-4.0")}
_UNREAD = "Its manifest could not be read when this card was written: nothing is known of its weights and licence."
_RANDOM = "**RANDOM WEIGHTS: its outputs mean nothing. For tests of the pipeline only.**"


def write_card(repo: str, manifests: Sequence[Manifest], unread: Sequence[str] = ()) -> str:
    """Return the model card: front matter, how to use the repository, and a section for each model.

    Args:
        repo: Its name.
        manifests: Those of its models.
        unread: Models whose manifests cannot be read: it is told that nothing is known of their weights.
    """
    parts = [_front_matter(manifests, unread), MARK, "", f"# {_plain(repo)}", "", _introduction(repo, manifests)]
    sections = {manifest.model: _section(manifest) for manifest in manifests}
    sections |= {model: f"## {_plain(model)}\n\n{_UNREAD}\n" for model in unread}
    return "\n".join([*parts, *(text for _, text in sorted(sections.items()))])


def _front_matter(manifests: Sequence[Manifest], unread: Sequence[str]) -> str:
    artifacts = [(m.model, a) for m in manifests for a in m.artifacts]
    terms = [terms_of(model, artifact) for model, artifact in artifacts]
    licences = {(t.licence or "").lower() for t in terms if not t.free} | {"" for _ in unread}
    sources = sorted({name for _, a in artifacts if (name := _repository(a))})
    tags = ["backbone-runtime", *sorted({a.key.format for _, a in artifacts})]
    if any(t.free for t in terms):
        tags.append("random-weights")
    lines = ["---", "library_name: backbone-runtime", "pipeline_tag: image-feature-extraction", *_licence(licences)]
    if sources:
        lines += ["base_model:", *(f"- {json.dumps(source)}" for source in sources)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _licence(licences: set[str]) -> list[str]:
    if len(licences) == 1 and licences <= _KNOWN_TO_THE_HUB:
        return [f"license: {min(licences)}"]
    return ["license: other", "license_name: see-each-model"] if licences else []


def _repository(artifact: Artifact) -> str | None:
    """Return the repository of the hub that the weights came from."""
    source: Any = artifact.facts.get("source") or {}
    name = str(source.get("id") or "")
    if artifact.key.weights != "pretrained" or not is_address(name):
        return None
    try:
        return parse_address(name).repo
    except OptionError:
        return None  # a manifest is what somebody else wrote


def _introduction(repo: str, manifests: Sequence[Manifest]) -> str:
    first = min(manifests, key=lambda manifest: manifest.model)
    return (
        "Vision backbones as verified artifacts: each gives the numbers of its eager PyTorch original, and is served "
        "without PyTorch. Built, verified and pushed with `backbone-runtime`, which compares every file with the "
        "SHA-256 of its manifest.\n\n"
        f"```python\nfrom runtime import load_model\n\nmodel = load_model({_plain(first.model)!r}"
        f'{_weights(first)}, artifacts="hf://{repo}")\n```\n\n'
        f"```console\n$ python -m runtime.pull {repo}\n```\n\n"
        "Append `@` and a commit to the repository's name to get the same files for ever.\n"
    )


def _weights(manifest: Manifest) -> str:
    """Return the keywords without which load_model would ask for the published weights."""
    kinds = sorted({artifact.key.weights for artifact in manifest.artifacts})
    if not kinds or "pretrained" in kinds or kinds[0].startswith("initial:"):
        return ""
    kind, _, seed = kinds[0].partition(":")
    if kind != "random":
        return f", weights={_plain(kinds[0])!r}"
    return ', weights="random"' + (f", seed={_plain(seed)}" if seed != "0" else "")


def _section(manifest: Manifest) -> str:
    shared = list(dict.fromkeys(_origin(terms_of(manifest.model, a), a) for a in manifest.artifacts))
    artifacts = sorted(manifest.artifacts, key=lambda a: a.key.describe())
    rows = [f"| {_plain(a.key.describe())} | {_size(a)} | {_cosine(a)} | {_served_by(a)} |" for a in artifacts]
    table = ["| Artifact | Size | Smallest cosine to eager | Verified by |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {_plain(manifest.model)}", "", *(f"- {line}" for line in shared), "", *table, ""])


def _origin(terms: Terms, artifact: Artifact) -> str:
    if terms.free:
        return f"`{_plain(terms.weights)}`: {_RANDOM}"
    source: Any = artifact.facts.get("source") or {}
    where = _plain(source.get("id") or "the registered function")
    revision = f" at `{_plain(source['revision'])}`" if source.get("revision") else ""
    gate = "; gated: accept the publisher's terms before you use it" if terms.gated else ""
    return f"`{_plain(terms.weights)}`: {where}{revision}; licence: {_plain(terms.licence or 'not stated')}{gate}"


def _size(artifact: Artifact) -> str:
    graph, *weights = (f"{file.bytes / 1e6:.1f} MB" for file in artifact.files)
    return f"{graph} + {' + '.join(weights)} of shared weights" if weights else graph


def _cosine(artifact: Artifact) -> str:
    parity: Any = artifact.facts.get("parity") or {}
    cosines = [output["min_cosine"] for output in parity.get("outputs", ()) if output.get("min_cosine") is not None]
    return f"{min(cosines):.7f}" if cosines else "not recorded"


def _served_by(artifact: Artifact) -> str:
    parity: Any = artifact.facts.get("parity") or {}
    also = artifact.facts.get("also_served_by") or ()
    return _plain(", ".join([str(parity.get("served_by") or "not recorded"), *map(str, also)]))


def _plain(text: object) -> str:
    """Return text as it may stand in a table of Markdown: a manifest is what somebody else wrote."""
    return " ".join(str(text).split()).replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")")
