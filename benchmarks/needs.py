"""What contenders need before they can be loaded: our artifacts built, the peers' graphs exported."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.contender import Contender
from benchmarks.lineup import Entry, Form, contender
from benchmarks.subject import Subject


@dataclass(frozen=True)
class Candidate:
    """A line of the line-up for one backbone; `reason` says why what it needs cannot be had, if so."""

    entry: Entry
    contender: Contender
    reason: str | None


def build_forms(model: str, forms: Iterable[Form], weights: str, artifacts: str) -> dict[Form, str]:
    """Build the forms that are missing or stale; return those that cannot be had, with the reason."""
    reasons: dict[Form, str] = {}
    for form in sorted(set(forms)):
        if reason := _build_one(model, form, weights, artifacts):
            reasons[form] = reason
    return reasons


def _build_one(model: str, form: Form, weights: str, artifacts: str) -> str | None:
    command = [sys.executable, "-m", "exporters.build", model, "--out-indices=none", "--json"]
    command += [f"--weights={weights}", f"--artifacts={artifacts}", *flags(form)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not done.returncode:
        return None
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    notes = [outcome["note"].splitlines()[0] for outcome in outcomes if outcome["status"] == "failed"]
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return f"not built: {notes[0] if notes else last}"


def flags(form: Form) -> list[str]:
    """Return the options of `python -m exporters.build` that give exactly this form."""
    given = [f"--format={form.format}"]
    given += [f"--target={form.target}"] if form.target != "any" else []
    given += [f"--precision={form.precision}"] if form.precision != "fp32" else []
    return given + ([f"--input={form.input}"] if form.input != "float32" else [])


def prepare(subject: Subject, device: str, entries: Sequence[Entry], build: bool, folder: Path) -> list[Candidate]:
    """Build and export what the entries need; return each with its contender, or why it cannot be had.

    Args:
        subject: The backbone.
        device: `cpu` or `cuda`.
        entries: The line-up.
        build: Whether artifacts that are missing are built.
        folder: Where the peers' graphs go.
    """
    wanted = {entry.form for entry in entries if entry.form} if build else set()
    missing = build_forms(subject.model, wanted, subject.weights, subject.artifacts)
    graphs, refused = _export(subject, entries, folder)
    made = []
    for entry in entries:
        given = {"weights": subject.weights, "artifacts": subject.artifacts, "device": device}
        given |= {"products": subject.work["products"], "graph": graphs.get(entry.export or "")}
        reason = missing.get(entry.form) if entry.form else refused.get(entry.export or "")
        if entry.side == "product" and not subject.work["products"]:
            reason = "the backbone has no linear layers"
        made.append(Candidate(entry, contender(entry, subject.model, given), reason))
    return made


def _export(subject: Subject, entries: Iterable[Entry], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the peers' graphs by kind of export, and why the others cannot be had."""
    graphs: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for kind in dict.fromkeys(entry.export for entry in entries if entry.export):
        try:
            graphs[kind] = str(peers.export(kind, subject.model, subject.weights, subject.image_shape, folder))
        except peers.PeerError as error:
            reasons[kind] = f"not exported: {error}"
    return graphs, reasons
