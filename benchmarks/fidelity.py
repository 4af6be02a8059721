"""How far a contender's numbers lie from a reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fidelity(reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> dict[str, float | None]:
    """Return `relative_rms` and `min_cosine`, of the worst image over all outputs; `None` when a value is not finite.

    Raises:
        ValueError: Outputs of other shapes are no outputs of the same backbone.
    """
    if [r.shape for r in reference] != [o.shape for o in outputs]:
        raise ValueError(f"outputs have shapes {[o.shape for o in outputs]}, not {[r.shape for r in reference]}")
    if not all(np.isfinite(output).all() for output in outputs):
        return {"relative_rms": None, "min_cosine": None}
    worst = [_compare(r.astype(np.float64), o.astype(np.float64)) for r, o in zip(reference, outputs, strict=True)]
    return {"relative_rms": max(rms for rms, _ in worst), "min_cosine": min(cosine for _, cosine in worst)}


def _compare(reference: NDArray[np.float64], output: NDArray[np.float64]) -> tuple[float, float]:
    expected, got = (array.reshape(len(array), -1) for array in (reference, output))
    norms = np.linalg.norm(expected, axis=1), np.linalg.norm(got, axis=1)
    rms = np.linalg.norm(got - expected, axis=1) / norms[0]
    cosine = (expected * got).sum(1) / np.maximum(norms[0] * norms[1], np.finfo(np.float64).tiny)
    return float(rms.max()), float(cosine.min())
