"""What contenders need before they can be loaded: our artifacts built, the peers' graphs exported."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.contender import Contender
from benchmarks.lineup import Entry, contender
from benchmarks.subject import FIDELITY_IMAGES, Subject
from runtime.manifest import Form


@dataclass(frozen=True)
class Candidate:
    """A line of the line-up for one backbone; `reason` says why what it needs cannot be had, if so."""

    entry: Entry
    contender: Contender
    reason: str | None


def build_forms(model: str, forms: Iterable[Form], weights: str, artifacts: str) -> dict[Form, str]:
    """Build the forms that are missing or stale; return those that cannot be had, with the reason.

    Forms of one input contract are built by one command, for they come from one export; if none of them is built,
    each once more by itself, for one that breaks the process would take the others with it.
    """
    wanted = sorted(set(forms))
    reasons: dict[Form, str] = {}
    for contract in dict.fromkeys(form.input for form in wanted):
        together = [form for form in wanted if form.input == contract]
        arguments = [model, f"--weights={weights}", f"--artifacts={artifacts}"]
        refused = _build(together, arguments)
        if len(refused) == len(together) > 1:
            refused = {form: why for alone in together for form, why in _build([alone], arguments).items()}
        reasons |= refused
    return reasons


def _build(forms: Sequence[Form], arguments: Sequence[str]) -> dict[Form, str]:
    command = [sys.executable, "-m", "exporters.build", "--out-indices=none", "--json", *arguments, *flags(forms)]
    done = subprocess.run(command, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    known = {Form(*(o[name] for name in ("format", "target", "precision", "input"))): o for o in outcomes}
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    reasons = {}
    for form in forms:
        if form not in known:
            reasons[form] = f"not built: {last}"
        elif known[form]["status"] == "failed":
            reasons[form] = f"not built: {(known[form]['note'].splitlines() or ['no reason given'])[0]}"
    return reasons


def flags(forms: Sequence[Form]) -> list[str]:
    """Return the options of `python -m exporters.build` that give these forms, which share an input contract."""
    targets = [form.target for form in forms if form.target != "any"]
    given = {
        "format": [form.format for form in forms],
        "target": targets,
        "precision": [form.precision for form in forms],
        "input": [form.input for form in forms],
    }
    return [f"--{name}={','.join(dict.fromkeys(values))}" for name, values in given.items() if values]


def prepare(
    subject: Subject,
    device: str,
    entries: Sequence[Entry],
    *,
    batches: Sequence[int],
    build: bool,
    folder: Path,
    optimum: str = sys.executable,
) -> list[Candidate]:
    """Build and export what the entries need; return each with its contender, or why it cannot be had.

    Args:
        subject: The backbone.
        device: `cpu` or `cuda`.
        entries: The line-up.
        batches: The batch sizes that will be measured.
        build: Whether artifacts that are missing are built.
        folder: Where the peers' graphs go.
        optimum: The interpreter that has optimum.
    """
    wanted = {entry.form for entry in entries if entry.form} if build else set()
    missing = build_forms(subject.model, wanted, subject.weights, subject.artifacts)
    graphs, refused = _export(subject, entries, folder, {"optimum": optimum})
    made = []
    for entry in entries:
        given: dict[str, Any] = {"weights": subject.weights, "artifacts": subject.artifacts, "device": device}
        given |= {"batch_sizes": sorted({1, FIDELITY_IMAGES, *batches})}
        given |= {"products": subject.work["products"], "graph": graphs.get(entry.export or "")}
        reason = missing.get(entry.form) if entry.form else refused.get(entry.export or "")
        if entry.side == "product" and not subject.work["products"]:
            reason = "the backbone has no linear layers"
        made.append(Candidate(entry, contender(entry, subject.model, given), reason))
    return made


def _export(
    subject: Subject, entries: Iterable[Entry], folder: Path, interpreters: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the peers' graphs by kind of export, and why the others cannot be had."""
    graphs: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for kind in dict.fromkeys(entry.export for entry in entries if entry.export):
        try:
            python = interpreters.get(kind, sys.executable)
            made = peers.export(kind, subject.model, subject.weights, subject.image_shape, folder, python=python)
            graphs[kind] = str(made)
        except peers.PeerError as error:
            reasons[kind] = f"not exported: {error}"
    return graphs, reasons
