"""Contenders timed side by side, in turns.

A shared machine drifts: every round measures all contenders, and ratios are taken round by round.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from numpy.typing import NDArray

from benchmarks.contender import ContenderError, Runner

# What takes less is timed several calls at a time, and after a call that wakes threads up.
SHORT_SECONDS = 0.05
MOST_CALLS = 50
# Threads that have to wake up cost milliseconds: a longer call need not be preceded by one that does not count.
WAKE_BELOW_SECONDS = 0.5
# Rounds that are run even when the time is over: fewer say nothing about spread.
FEWEST_ROUNDS = 3

Lost = Callable[[str, ContenderError], None]


def in_turns(
    made: Mapping[str, Runner],
    images: NDArray[Any] | Mapping[str, NDArray[Any]],
    rounds: int,
    *,
    warmup: int = 2,
    until: float = math.inf,
    lost: Lost | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each round for each runner: A B C, A B C, ... after `warmup` rounds that do not count.

    Within a round each runner makes one call that does not count, unless it is a long one: it wakes its threads while
    the others' go to sleep. Of short calls, several are timed at once.

    Args:
        made: The runners, by label.
        images: What they are given; a mapping gives each its own.
        rounds: At most as many count.
        warmup: Rounds that do not count.
        until: When `time.monotonic()` says so, no further round is begun, but `FEWEST_ROUNDS` are made.
        lost: Told of a runner that fails, which then takes no further part; by default its error is raised.
    """
    seconds: dict[str, list[float]] = {label: [] for label in made}
    last = dict.fromkeys(made, WAKE_BELOW_SECONDS)
    for number in range(warmup + rounds):
        if number - warmup >= FEWEST_ROUNDS and time.monotonic() > until:
            break
        for label in list(seconds):
            try:
                last[label] = _turn(made[label], images[label] if isinstance(images, Mapping) else images, last[label])
            except ContenderError as error:
                if lost is None:
                    raise
                del seconds[label]
                lost(label, error)
                continue
            if number >= warmup:
                seconds[label].append(last[label])
    return seconds


def _turn(runner: Runner, images: NDArray[Any], last: float) -> float:
    if last <= WAKE_BELOW_SECONDS:
        last = runner.time(images)
    calls = min(MOST_CALLS, math.ceil(SHORT_SECONDS / max(last, 1e-9)))
    return runner.time(images, calls)


def ratios(of: Sequence[float], over: Sequence[float]) -> tuple[float, float, float]:
    """Return smallest, median and largest of `over / of`, taken round by round: how many times faster `of` is."""
    by_round = [slow / fast for fast, slow in zip(of, over, strict=True)]
    return min(by_round), median(by_round), max(by_round)
