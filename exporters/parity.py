"""How far one side's outputs lie from the other's, in numbers that do not depend on their scale."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import VerificationError


@dataclass(frozen=True)
class Parity:
    """How far one output lies from the reference, over all verification inputs."""

    name: str
    relative_rms: float
    min_cosine: float
    min_token_cosine: float
    max_abs: float

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, rounded to what is meaningful."""
        return {k: v if isinstance(v, str) else _round(v) for k, v in asdict(self).items()}


def _round(value: float) -> float:
    # Cosines lie so close to 1 that three digits would say nothing.
    return round(value, 12) if value > 0.5 else float(f"{value:.3g}")


def compare(names: Sequence[str], reference: list[list[Any]], candidate: list[list[Any]]) -> list[Parity]:
    """Return the parity of each output over all batches.

    Raises:
        VerificationError: Number or shapes of the outputs differ.
    """
    for expected, got in zip(reference, candidate, strict=True):
        shapes = [tuple(o.shape) for o in expected], [tuple(o.shape) for o in got]
        if shapes[0] != shapes[1]:
            raise VerificationError(f"outputs have shapes {shapes[1]}, eager gives {shapes[0]}")
    return [_parity(name, [b[i] for b in reference], [b[i] for b in candidate]) for i, name in enumerate(names)]


def _parity(name: str, expected: list[Any], got: list[Any]) -> Parity:
    # One image at a time: the float64 copies of a batch of volumes would not fit into memory.
    images = [pair for batches in zip(expected, got, strict=True) for pair in zip(*batches, strict=True)]
    per_image = [_compare_one(np.asarray(e[None], np.float64), np.asarray(g[None], np.float64)) for e, g in images]
    relative, cosine, token, absolute = zip(*per_image, strict=True)
    return Parity(name, float(np.max(relative)), float(np.min(cosine)), float(np.min(token)), float(np.max(absolute)))


def _compare_one(expected: NDArray[np.float64], got: NDArray[np.float64]) -> tuple[float, float, float, float]:
    flat = expected.reshape(len(expected), -1), got.reshape(len(got), -1)
    difference = flat[1] - flat[0]
    relative = _over(np.sqrt((difference**2).mean(1)), np.sqrt((flat[0] ** 2).mean(1)))
    tokens = (
        _tokens(expected) if expected.ndim > 2 else flat[0],
        _tokens(got) if got.ndim > 2 else flat[1],
    )
    return float(relative.max()), _min_cosine(*flat), _min_cosine(*tokens), float(np.abs(difference).max())


def _tokens(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


def _min_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # What is all zeros in both (a token behind a ReLU) is equal; what is all zeros in one only is not alike at all.
    cosines = np.where(norms == 0, 0.0, _over((a * b).sum(1), norms))
    return float(np.where(a.any(1) | b.any(1), cosines, 1.0).min())


def _over(error: Any, size: Any) -> Any:
    """Return error / size; no error is 0, also where size is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / size)


def relative_rms(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the RMS of the difference over the RMS of the reference."""
    exact = np.asarray(reference, np.float64)
    error = np.sqrt(((np.asarray(other, np.float64) - exact) ** 2).mean())
    return float(_over(error, np.sqrt((exact**2).mean())))
