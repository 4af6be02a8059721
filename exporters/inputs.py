"""What every artifact is tried on: real tissue, noise, a constant, extremes, at batch sizes no export saw."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.facts import HALF, Preprocessing
from runtime.preprocess import normalise

Batch = NDArray[np.float32]

# A crop of scikit-image's immunohistochemistry example: colon, DAB and haematoxylin.
TILE = Path(__file__).with_name("verification_tile.png")
# Batch sizes the export did not see (it traces with 2), for images and for volumes: one batch of eight volumes would
# need more memory than building the largest backbone does.
BATCHES = {2: (1, 3, 8), 3: (1, 3)}
# The batch that is compared with float64: of a single image either side's error can be luck (a factor of two and more
# for an embedding of 200 numbers); a volume is a million voxels, and a second one would take minutes.
EXACT_BATCH = {2: 1, 3: 0}
# Where a batch of floats holds the image whose pixels no 8-bit picture can have. Of int8, whose ranges are those of
# pictures, it asks only to stay finite.
EXTREME = 3


def verification_inputs(facts: Preprocessing, sizes: Sequence[tuple[int, ...]]) -> list[Batch]:
    """Return the batches every artifact is tried on: real tissue, noise, a constant, and extremes."""
    batches = BATCHES[facts.spatial_dims]
    return [_batch(facts, size, count, seed) for size in sizes for seed, count in enumerate(batches)]


def verification_images(facts: Preprocessing, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    """Return the same for artifacts that take images, uint8 [B, H, W, C]."""
    batches = BATCHES[facts.spatial_dims]
    return [_images(facts, size, count, seed) for size in sizes for seed, count in enumerate(batches)]


def _images(facts: Preprocessing, size: tuple[int, int], count: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    shape = (*size, facts.channels)
    made = [
        _pixels(facts, size, seed),
        rng.integers(0, 256, shape, dtype=np.uint8),
        np.full(shape, 64, dtype=np.uint8),
        rng.choice(np.array([0, 255], dtype=np.uint8), size=shape),
        *(_pixels(facts, size, seed + 1 + i) for i in range(count)),
    ]
    return np.stack(made[:count])


def _batch(facts: Preprocessing, size: tuple[int, ...], count: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    shape = (facts.channels, *size)
    made = [
        _tile(facts, size, seed),
        rng.standard_normal(shape, dtype=np.float32),
        np.full(shape, 0.25, dtype=np.float32),
        # Pixels far outside the normalised range, as a wrong scaling would give.
        rng.choice(np.array([-20.0, 20.0], dtype=np.float32), size=shape),
        *(_tile(facts, size, seed + 1 + i) for i in range(count)),
    ]
    return np.ascontiguousarray(np.stack(made[:count]))


def _tile(facts: Preprocessing, size: tuple[int, ...], position: int) -> Batch:
    """Return a piece of the bundled tissue image as model input; another piece for each position.

    A volume is a stack of such pieces.
    """
    if len(size) == 3:
        return np.stack([_tile(facts, size[1:], position + depth) for depth in range(size[0])], axis=1)
    neutral = HALF[: facts.channels]
    stated = replace(facts, mean=facts.mean or neutral, std=facts.std or neutral)
    tile: Batch = normalise(_pixels(facts, (size[0], size[1]), position)[None], stated)[0]
    return tile


def _pixels(facts: Preprocessing, size: tuple[int, int], position: int) -> NDArray[np.uint8]:
    """Return a piece of the bundled tissue image, [H, W, C]."""
    step = 24 * position % 120
    piece = _tissue().crop((step, step, step + 224, step + 224)).resize((size[1], size[0]))
    if facts.channels == 1:
        piece = piece.convert("L")
    return np.asarray(piece, dtype=np.uint8).reshape(*size, facts.channels)


@cache
def _tissue() -> Image.Image:
    with Image.open(TILE) as picture:
        return picture.convert("RGB")


def of_pictures(batches: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the outputs without those for the image that no picture can be."""
    return [
        [np.delete(output, [EXTREME], axis=0) if len(output) > EXTREME else output for output in b] for b in batches
    ]
