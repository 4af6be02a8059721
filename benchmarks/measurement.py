"""One backbone on one device: every contender of the line-up, measured on the same weights and images."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from benchmarks import cold_start
from benchmarks.contender import Contender, ContenderError, Runner
from benchmarks.fidelity import fidelity
from benchmarks.lineup import EAGER
from benchmarks.machine_facts import available_mb
from benchmarks.needs import Candidate
from benchmarks.subject import FIDELITY_IMAGES, Subject
from benchmarks.turns import in_turns

# Of the free memory, what the processes of one group may take: activations of large batches come on top.
SHARE_OF_MEMORY = 0.6
# A runtime's second call of a shape is often its last slow one; where a call takes this long, one call is enough.
LONG_SECONDS = 2.0
# Of a process whose memory was not measured, by a cold start: torch, and the weights as they are read and as prepared.
PROCESS_MB = 700.0
WEIGHT_BYTES = 8
# What the rounds of a batch size take at least, over one round: a warm-up and the fewest rounds.
LEAST_ROUNDS = 4
# A batch size that costs no more is measured even when the time is over.
CHEAP_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    Attributes:
        batches: Batch sizes, ascending; the first is always measured.
        rounds: At most as many a batch size.
        cold_starts: Fresh processes a contender.
        deadline: `time.monotonic()` when this backbone's share of the time is over.
    """

    batches: tuple[int, ...]
    rounds: int
    cold_starts: int
    deadline: float


def measure(subject: Subject, device: str, candidates: Sequence[Candidate], plan: Plan) -> dict[str, Any]:
    """Return what the report says of one backbone on one device."""
    section = _Section(subject, plan)
    ready = [candidate.contender for candidate in candidates if section.enter(candidate)]
    together = groups(ready, megabytes(section.rows, subject.work["parameters"]))
    for number, group in enumerate(together):
        now = time.monotonic()
        share = len(group) / sum(map(len, together[number:]))
        section.run(group, now + share * (plan.deadline - now))
    return {
        "model": subject.model,
        "device": device,
        "weights": subject.weights,
        "image_size": list(subject.size),
        **subject.work,
        "not_measured": section.skipped,
        "contenders": section.rows,
    }


def megabytes(rows: Sequence[dict[str, Any]], parameters: int) -> dict[str, float]:
    """Return what each contender takes in a process of its own: as its cold start did, else by its weights."""
    likely = PROCESS_MB + WEIGHT_BYTES * parameters / 1e6
    return {row["label"]: row["cold"][0]["peak_mb"] if row.get("cold") else likely for row in rows}


def groups(ready: Sequence[Contender], taken: dict[str, float], most: float | None = None) -> list[list[Contender]]:
    """Return the contenders in groups that fit into memory together, the yardstick of speed in each.

    Args:
        ready: The contenders; eager fp32 among them.
        taken: What each takes in a process of its own, in megabytes.
        most: What a group may take; by default a share of what is free.
    """
    limit = SHARE_OF_MEMORY * available_mb() if most is None else most
    eager = next((c for c in ready if c.label == EAGER), None)
    if eager is None:
        return []
    made = [[eager]]
    for one in ready:
        if one is eager:
            continue
        if len(made[-1]) > 1 and sum(taken[c.label] for c in (*made[-1], one)) > limit:
            made.append([eager])
        made[-1].append(one)
    return made


class _Section:
    """Collects the rows of one backbone on one device."""

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self.subject = subject
        self.plan = plan
        self.rows: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self._eager_outputs: list[NDArray[Any]] = []

    def enter(self, candidate: Candidate) -> bool:
        """Add the row of a contender, with its cold start; return whether it can run here: the reason is noted."""
        entry = candidate.entry
        row: dict[str, Any] = {"label": entry.label, "side": entry.side, "precision": entry.precision}
        row["images"], row["reason"] = entry.images, candidate.reason
        self.rows.append(row)
        if candidate.reason is None and entry.side != "product":
            try:
                row["cold"] = cold_start.several(candidate.contender, self.subject.image_shape, self.plan.cold_starts)
            except ContenderError as error:
                row["reason"] = str(error)
        return row["reason"] is None

    def run(self, group: Sequence[Contender], deadline: float) -> None:
        """Measure a group of contenders, until `time.monotonic()` reaches `deadline`."""
        with self._started(group) as made:
            images = {c.label: c.images for c in group if c.label in made}
            if EAGER in made:
                self._check(made, images)
            last: float | None = None
            for position, batch in enumerate(self.plan.batches):
                if EAGER not in made:
                    break
                expected = None if last is None else last * batch / self.plan.batches[position - 1]
                if reason := self._no_time(batch, expected, deadline):
                    self.skipped.setdefault(str(batch), reason)
                    break
                last = self._batch(made, images, batch, (expected or 0.0, self._until(batch, deadline)))
            for label, runner in made.items():
                self._row(label)["peak_mb"] = runner.peak_mb()
            for row in map(self._row, images):
                if not row.get("timings") and row["reason"] is None:
                    row["reason"] = f"{EAGER} did not run beside it"

    @contextmanager
    def _started(self, group: Sequence[Contender]) -> Iterator[dict[str, Runner]]:
        made: dict[str, Runner] = {}
        try:
            for one in group:
                try:
                    made[one.label] = Runner(one)
                    self._row(one.label).setdefault("about", made[one.label].about)
                except ContenderError as error:
                    self._row(one.label)["reason"] = str(error)
            yield made
        finally:
            for runner in made.values():
                runner.close()

    def _check(self, made: dict[str, Runner], images: dict[str, str]) -> None:
        """Note how far each contender's numbers are from float64's and from eager's; the first calls, timed."""
        batch = self.subject.images(FIDELITY_IMAGES)
        for label, runner in list(made.items()):
            row = self._row(label)
            try:
                seconds, outputs = runner.run(batch[images[label]])
                row.setdefault("first_call_seconds", seconds)
                if label == EAGER:
                    self._eager_outputs = outputs
                if row["side"] != "product":
                    references = {"float64": self.subject.exact, "eager": self._eager_outputs}
                    row["fidelity"] = {name: fidelity(outputs_of, outputs) for name, outputs_of in references.items()}
            except (ContenderError, ValueError) as error:
                row["reason"] = str(error)
                made.pop(label).close()
                if label == EAGER:
                    return  # nothing to compare with

    def _no_time(self, batch: int, expected: float | None, deadline: float) -> str | None:
        left = deadline - time.monotonic()
        if expected is None or LEAST_ROUNDS * expected <= max(left, CHEAP_SECONDS):
            return None
        needed = f"{LEAST_ROUNDS} rounds would take {LEAST_ROUNDS * expected:.0f} s"
        return f"batch {batch}: {needed}, {max(0, left):.0f} s left"

    def _batch(
        self, made: dict[str, Runner], images: dict[str, str], batch: int, time_plan: tuple[float, float]
    ) -> float:
        """Measure a batch size, knowing the seconds a round should take and when to stop; return those it took."""
        expected, until = time_plan
        given = self.subject.images(batch)
        warmup = 1 if expected > LONG_SECONDS * len(made) else 2
        seconds = in_turns(
            made,
            {label: given[images[label]] for label in made},
            self.plan.rounds,
            warmup=warmup,
            until=until,
            lost=lambda label, error: self._lost(label, error, made, batch),
        )
        for label, own in seconds.items():
            timings = self._row(label).setdefault("timings", {})
            timings.setdefault(str(batch), {"seconds": own, "eager": seconds.get(EAGER, [])})
        return sum(min(own) for own in seconds.values())

    def _until(self, batch: int, deadline: float) -> float:
        """Return when this batch size's share of the time left is over."""
        now = time.monotonic()
        to_come = len([b for b in self.plan.batches if b >= batch])
        return now + max(0.0, deadline - now) / to_come

    def _lost(self, label: str, error: ContenderError, made: dict[str, Runner], batch: int) -> None:
        self._row(label)["reason"] = f"batch {batch}: {error}"
        made.pop(label).close()

    def _row(self, label: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["label"] == label)
