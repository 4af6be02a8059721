"""What a store holds, as the jobs that verify it: pure decisions about manifests, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from exporters.plan import Job, Outcome
from runtime import registry
from runtime.artifacts import Store
from runtime.errors import BackboneError, UnknownModelError
from runtime.manifest import Artifact, Form
from runtime.origin import request_of
from runtime.out_indices import label
from runtime.request import Request


@dataclass(frozen=True)
class Published:
    """An artifact of a store, with the name of its model."""

    model: str
    artifact: Artifact

    def outcome(self, status: str, note: str) -> Outcome:
        """Return what became of it."""
        key, size = self.artifact.key, sum(file.bytes for file in self.artifact.files)
        return Outcome(self.model, label(key.out_indices), key.form, status, note=note, bytes=size)


def matching(store: Store, globs: Sequence[str]) -> list[str]:
    """Return the models of a store that match any of the globs, sorted.

    Raises:
        UnknownModelError: One of them matches nothing.
    """
    models = store.models()
    for glob in globs:
        if not any(fnmatchcase(model, glob) for model in models):
            raise UnknownModelError(
                f"Nothing is published as {glob!r} in {store.root}. Published: {', '.join(models) or 'nothing'}."
            )
    return [model for model in models if any(fnmatchcase(model, glob) for glob in globs)]


def read(store: Store, models: Sequence[str]) -> tuple[list[Published], list[BackboneError]]:
    """Return the artifacts of the models, and what is wrong with manifests that cannot be used."""
    found: list[Published] = []
    broken: list[BackboneError] = []
    for model in models:
        try:
            found += [Published(model, artifact) for artifact in store.read(model).artifacts]
        except BackboneError as error:
            broken.append(error)
    return found, broken


def compare_hashes(store: Store, found: Sequence[Published]) -> list[Outcome]:
    """Return whether the files of each artifact have the SHA-256 that their manifest states; each is read once."""
    models = dict.fromkeys(each.model for each in found)
    problems = {model: store.problems(store.read(model), full=True) for model in models}
    outcomes = []
    for each in found:
        wrong = problems[each.model]
        told = "; ".join(f"{file.name} {wrong[file]}" for file in each.artifact.files if file in wrong)
        outcomes.append(each.outcome("failed" if told else "verified", told or "SHA-256 of every file"))
    return outcomes


def plan_jobs(
    store: Store,
    found: Sequence[Published],
    *,
    device: str | None = None,
    checkpoint_path: str | None = None,
    imports: tuple[str, ...] = (),
) -> tuple[list[Job], list[Outcome]]:
    """Return the jobs that verify artifacts, one for all forms of a variant; and what is said of those without a job.

    Args:
        store: Where they are published.
        found: The artifacts.
        device: Where to run them; `None` for what each was made for.
        checkpoint_path: What the artifacts of a local checkpoint were built from.
        imports: Modules that register further backbones.
    """
    variants: dict[tuple[object, ...], tuple[Request, list[Form]]] = {}
    outcomes = []
    for each in found:
        key = each.artifact.key
        local = key.weights.startswith("checkpoint")
        if local and checkpoint_path is None:
            why = f"built from a local file ({key.weights}), which --checkpoint-path would name"
            outcomes.append(each.outcome("skipped", why))
            continue
        given = {"artifacts": str(store.root), "device": device, "checkpoint_path": checkpoint_path if local else None}
        try:
            request = request_of(registry.find(each.model), key, **given)
        except BackboneError as error:
            outcomes.append(each.outcome("failed", str(error)))
            continue
        variant = (each.model, key.out_indices, key.image_size, key.options, key.weights)
        plain = replace(request, precision="fp32", input="float32")  # what the forms of a variant share
        variants.setdefault(variant, (plain, []))[1].append(key.form)
    jobs = [Job(request, tuple(forms), imports=imports, task="verify") for request, forms in variants.values()]
    return jobs, outcomes
