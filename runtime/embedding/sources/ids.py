"""Are ids unique? Found out in 16 bytes of memory per id, whatever their length."""

from collections.abc import Callable, Iterable

import numpy as np

Batch = tuple[str, int, list[str]]
"""Where the rows lie (a file), the number of the first, and their ids."""

_PLACES = 3


def find_duplicates(read: Callable[[], Iterable[Batch]], most: int = 3) -> dict[str, list[str]]:
    """Return ids that occur more than once, at most `most`, each with the first places where it does.

    `read` is called twice when hashes of 64 bits coincide: they tell which ids to compare in full.
    """
    hashes = [np.fromiter(map(hash, ids), np.int64, len(ids)) for _, _, ids in read()]
    together = np.concatenate([np.empty(0, np.int64), *hashes])
    del hashes
    together.sort()
    suspects = set(together[1:][together[1:] == together[:-1]].tolist())
    return _compare(read(), suspects, most) if suspects else {}


def _compare(batches: Iterable[Batch], suspects: set[int], most: int) -> dict[str, list[str]]:
    seen: dict[str, list[str]] = {}
    twice: dict[str, list[str]] = {}
    for place, first, ids in batches:
        for row, value in enumerate(ids, first):
            if hash(value) not in suspects:
                continue
            rows = seen.setdefault(value, [])
            if len(rows) < _PLACES:
                rows.append(f"{place} row {row}")
            if len(rows) == 2 and len(twice) < most:
                twice[value] = rows
    return twice
