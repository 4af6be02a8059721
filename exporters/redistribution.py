"""Whether artifacts may be made public, by what their weights' publisher says. Pure; not legal advice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime import registry
from runtime.errors import RedistributionError, UnknownModelError
from runtime.manifest import Artifact, Manifest
from runtime.request import is_drawn

# Anybody may pass on copies in another format under these, keeping their conditions. Whatever is not here is refused:
# a licence of the publisher's own has to be read by a person.
PERMITTING = (
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "GPL-3.0",
    "AGPL-3.0",
    "LGPL-3.0",
)
_PERMITTING = {licence.lower() for licence in PERMITTING}


@dataclass(frozen=True)
class Terms:
    """On which terms weights were published.

    Attributes:
        licence: In the publisher's words; `None` where none is stated.
        gated: Whether terms have to be accepted before the download.
        weights: As an artifact's key spells them: `pretrained`, `random:0`, ...
    """

    licence: str | None
    gated: bool
    weights: str

    @property
    def free(self) -> bool:
        """Whether there are no published weights in it, but numbers drawn from a seed."""
        return is_drawn(self.weights)


def terms_of(model: str, artifact: Artifact) -> Terms:
    """Return the terms of an artifact's weights: the registry's, and where it states none the manifest's."""
    source: Any = artifact.facts.get("source") or {}
    licence, gated = source.get("licence"), bool(source.get("gated"))
    try:
        spec = registry.find(model)
        licence, gated = spec.licence or licence, spec.gated or gated
    except UnknownModelError:
        pass  # registered where it was built
    return Terms(licence, gated, artifact.key.weights)


def obstacles(terms: Terms) -> list[str]:
    """Return what forbids making weights on these terms public, in words; an empty list when nothing does."""
    if terms.free:
        return []
    found = []
    if terms.gated:
        found.append("gated, its publisher gives it only to those who accept the terms")
    if terms.weights.startswith("checkpoint:"):
        found.append("built from a local checkpoint, and only you know whether that may be shared")
    if terms.licence is None:
        found.append("no licence is stated, so nobody has permission")
    elif "-nd-" in terms.licence.lower():
        found.append(f"its licence {terms.licence} forbids sharing what was adapted (ND)")
    elif terms.licence.lower() not in _PERMITTING:
        found.append(f"its licence {terms.licence!r} is not one that is known to permit it")
    return found


def require_permission(manifests: Sequence[Manifest], repo: str) -> None:
    """Raise unless every artifact may be made public.

    Raises:
        RedistributionError: With each backbone that may not, and what forbids it.
    """
    if forbidden := restricted(manifests):
        raise RedistributionError(
            f"{repo} is public, and what would be pushed is not free to be:\n"
            + "".join(f"  {line}\n" for line in forbidden)
            + "Nothing was pushed. Push to a private repository (--private makes one), name other models, or add "
            "--redistribution-allowed if the publisher has given you permission."
        )


def restricted(manifests: Sequence[Manifest]) -> list[str]:
    """Return a line for each model that must not become public: its name, and what forbids it."""
    lines = []
    for manifest in manifests:
        reasons = [reason for a in manifest.artifacts for reason in obstacles(terms_of(manifest.model, a))]
        if reasons:
            lines.append(f"{manifest.model}: {'; '.join(dict.fromkeys(reasons))}")
    return lines
