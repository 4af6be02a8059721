"""What is wrong with the folder of artifacts, and how to mend it: pure decisions about its facts."""

from collections.abc import Mapping

from runtime.doctor.facts import Facts, StoredModel
from runtime.doctor.verdict import FAIL, PASS, WARN, Finding

_BUILD = "python -m exporters.build"
_PRUNE = "python -m exporters.prune --dry-run shows what could go"


def check_folder(facts: Facts) -> list[Finding]:
    """Look at whether the folder is there and can be read and written."""
    store = facts.store
    where = f"{store.root} ({store.named_by})"
    if store.remote:
        return [Finding(PASS, "artifacts", f"{where} is a repository: load_model fetches from it what serves")]
    if not store.exists:
        return [Finding(WARN, "artifacts", f"{where} does not exist yet", f"{_BUILD} NAME makes it")]
    if store.unreadable:
        fix = "mend its permissions, or name another folder by --artifacts or BACKBONE_ARTIFACTS"
        return [Finding(FAIL, "artifacts", f"{where} cannot be read: {store.unreadable}", fix)]
    found = [Finding(PASS, "artifacts", f"{where} holds {_count(store.models)}")]
    if store.unwritable:
        fix = "nothing to do where it is only served from; to build, mend its permissions or free space"
        found.append(Finding(WARN, "artifacts", f"{where} cannot be written: {store.unwritable}", fix))
    return found


def _count(models: tuple[StoredModel, ...]) -> str:
    artifacts, bytes = sum(model.artifacts for model in models), sum(model.bytes for model in models)
    return f"{artifacts} artifacts of {len(models)} models, {bytes / 1e6:,.1f} MB"


def check_artifacts(facts: Facts) -> list[Finding]:
    """Look at manifests, damaged files, outdated and foreign artifacts, leftovers."""
    store = facts.store
    found = [finding for model in store.models for finding in _of_model(model)]
    left = sum(model.unlisted for model in store.models)
    if left:
        says = f"{left / 1e6:,.1f} MB are files that no manifest lists"
        found.append(Finding(WARN, "leftovers", says, f"{_PRUNE}; the next build of the model removes them, too"))
    if store.unfinished:
        says = f"{store.unfinished} builds are going on, or were killed"
        found.append(Finding(WARN, "leftovers", says, f"if none is going on: {_PRUNE}"))
    if store.fetched:
        says = f"pulls of {store.fetched} models are going on, or were given up"
        fix = f"run python -m runtime.pull again to go on; if nobody wants them: {_PRUNE}"
        found.append(Finding(WARN, "leftovers", says, fix))
    if store.models and not any(model.problem or model.damaged for model in store.models):
        compared = "the SHA-256 of every file" if store.hashed else "the size of every file (--hash: its SHA-256)"
        found.insert(0, Finding(PASS, "files", f"every manifest is valid, and {compared} is as it says"))
    return found


def _of_model(model: StoredModel) -> list[Finding]:
    if model.problem:
        return [Finding(FAIL, "manifest", model.problem, f"{_BUILD} {model.name}, after deleting the manifest")]
    found = []
    if model.damaged:
        found.append(Finding(FAIL, "files", f"{model.name}: {'; '.join(model.damaged)}", _all(model.rebuild)))
    if model.outdated:
        share = f"{len(model.outdated)} of {model.artifacts}"
        says = f"{model.name}: another recipe of graphs made {share} artifacts; they are served as they were verified"
        found.append(Finding(WARN, "recipe", says, _all(model.outdated)))
    if not model.registered:
        says = f"{model.name} is built, and not registered here: it cannot be loaded"
        found.append(Finding(WARN, "registry", says, "install or --import what registers it, or delete its folder"))
    return found


def _all(commands: tuple[str, ...]) -> str:
    return "\n".join(commands)


def check_versions(facts: Facts) -> list[Finding]:
    """Tell the versions that the artifacts were built with."""
    sets: dict[str, list[str]] = {}
    for model in facts.store.models:
        for versions in model.versions:
            sets.setdefault(_spelt(versions), []).append(model.name)
    return [
        Finding(PASS, "built with", f"{spelt}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        for spelt, names in sorted(sets.items())
    ]


def _spelt(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{tool} {version}" for tool, version in sorted(versions.items())) or "unknown versions"
