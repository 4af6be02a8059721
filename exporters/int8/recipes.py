"""How a group of layers is computed in int8: the range of its input, and the scale moved from there into its weights.

A few channels of a trained transformer's activations are a hundred times larger than the others; one scale for all
would round those to nothing. Dividing such channels and multiplying the weights that read them changes no result, and
both sides then fit eight bits (Xiao et al., "SmoothQuant", 2023). What is best is measured on rows of real input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.int8.layers import Group
from exporters.int8.observation import Observation

Array = NDArray[np.float32]

# Share of a channel's size that moves into the weights; 0 moves nothing.
SHARES = (0.0, 0.35, 0.5, 0.65, 0.8)
# Room for what other images bring, as a factor of the observed range.
HEADROOM = 1.1
# Parts of the range that are tried: what lies outside is clipped. On images that were not observed that may be what
# counts, so the error must become this many times smaller.
CLIP_GAIN = 4.0
CLIPS = (0.8, 0.65, 0.5)
# An unsigned range with a zero point costs a backend more than a signed one; taken where it is this much finer.
FINER = 0.8


@dataclass(frozen=True)
class Recipe:
    """How the input of a group becomes eight bits.

    Attributes:
        scale: Step of the quantised input.
        zero_point: Its zero; int8 for a symmetric range, uint8 otherwise.
        divisors: What each channel is divided by before, [K], powers of two; None for 1.
        error: Mean squared error of the layers' output on the observed rows, relative to its size.
    """

    scale: np.float32
    zero_point: Any
    divisors: Array | None
    error: float


def find_recipe(group: Group, seen: Observation, *, movable: bool, gain: float) -> Recipe:
    """Return the recipe with the smallest error in what the layers give.

    Args:
        group: Layers that read one value.
        seen: That value.
        movable: Whether channels can be divided.
        gain: Dividing them must make the error this many times smaller.
    """
    weights = np.concatenate([layer.matrix() for layer in group.layers], axis=1)
    expected = multiply(seen.rows, weights)
    trials = [_Trial(seen, weights, expected, d) for d in (_divisors(seen, weights) if movable else [None])]
    plain, best = trials[0], min(trials, key=lambda trial: trial.whole.error)
    chosen = best if best.whole.error * gain < plain.whole.error else plain
    clipped = min((chosen.recipe(clip) for clip in CLIPS), key=lambda recipe: recipe.error)
    return clipped if clipped.error * CLIP_GAIN < chosen.whole.error else chosen.whole


def multiply(a: Array, b: Array) -> Array:
    """Return the matrix product; torch's is several times faster than numpy's on some machines."""
    product: Array = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def quantise_weights(matrix: Array) -> tuple[NDArray[np.int8], Array]:
    """Return a matrix [K, N] as int8 with one scale for each column, [N]."""
    largest = np.abs(matrix).max(0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(matrix / scales).astype(np.int8), scales


def _divisors(seen: Observation, weights: Array) -> Iterator[Array | None]:
    yield None
    size = np.maximum(np.abs(seen.low), np.abs(seen.high))
    reach = np.abs(weights).max(1)
    alive = (size > 0) & (reach > 0)
    octaves = [np.log2(np.where(alive, v, 1)) for v in (size, reach)]
    for share in SHARES[1:]:
        exponents = np.where(alive, share * octaves[0] - (1 - share) * octaves[1], 0)
        # Powers of two: the graph computes exactly what it did before. Their common factor would change nothing.
        yield np.exp2(np.rint(exponents - np.median(exponents))).astype(np.float32)


class _Trial:
    """One choice of divisors; `recipe` measures it with the input's range cut to a part."""

    def __init__(self, seen: Observation, weights: Array, expected: Array, divisors: Array | None) -> None:
        one = np.float32(1) if divisors is None else divisors
        matrix, scales = quantise_weights(weights if divisors is None else weights * divisors[:, None])
        self._weights, self._expected, self._divisors = matrix * scales, expected, divisors
        self._rows = seen.rows / one
        self._range = float((seen.low / one).min()) * HEADROOM, float((seen.high / one).max()) * HEADROOM
        self.whole = self.recipe(1.0)

    def recipe(self, clip: float) -> Recipe:
        scale, zero_point = _steps(self._range[0] * clip, self._range[1] * clip)
        got = multiply(_round(self._rows, scale, zero_point), self._weights)
        return Recipe(scale, zero_point, self._divisors, _error(got, self._expected))


def _steps(low: float, high: float) -> tuple[np.float32, Any]:
    low, high = min(low, 0.0), max(high, 0.0)
    signed, unsigned = max(-low, high) / 127, (high - low) / 255
    if signed == 0:
        return np.float32(1), np.int8(0)
    if unsigned > FINER * signed:
        return np.float32(signed), np.int8(0)
    return np.float32(unsigned), np.uint8(round(-low / unsigned))


def _round(rows: Array, scale: np.float32, zero_point: Any) -> Array:
    limits = np.iinfo(zero_point.dtype)
    steps = np.rint(rows / scale) + np.float32(zero_point)
    result: Array = (np.clip(steps, limits.min, limits.max) - np.float32(zero_point)) * scale
    return result


def _error(got: Array, expected: Array) -> float:
    # Token by token: a class token is one of hundreds, and often the one that counts.
    sizes = (expected**2).sum(1)
    return float((((got - expected) ** 2).sum(1) / np.maximum(sizes, 0.01 * sizes.mean() + 1e-30)).mean())
