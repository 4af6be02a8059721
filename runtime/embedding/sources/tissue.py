"""Where on a slide there is tissue: what has colour, at low resolution.

Glass is grey or white, stained tissue is coloured. Colour is the difference of a pixel's largest and smallest channel;
Otsu's threshold parts it, kept between 8 and 24 of 255, so that neither an empty slide nor one full of tissue is parted
in two. What has no colour (fluorescence, ink in black) is background.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.embedding.sources.grid import Grid

# Least share of a tile that must be tissue.
LEAST_TISSUE = 0.1
THRESHOLDS = (8, 24)
_PIXELS_PER_TILE = 8
_LONGEST_SIDE = 4096
_BLOCK = 2048


def tiles_with_tissue(slide: Any, grid: Grid) -> list[tuple[int, int]]:
    """Return row and column of every tile of `grid` that holds tissue, row by row."""
    scale = max(grid.step / _PIXELS_PER_TILE, max(grid.extent) / _LONGEST_SIDE)
    colour = _colour(slide, grid, scale)
    share = _shares(colour > threshold(colour), grid, scale)
    return [(int(row), int(column)) for row, column in np.argwhere(share >= LEAST_TISSUE)]


def threshold(colour: NDArray[np.uint8]) -> int:
    """Return the value that colour lies above: Otsu's, the one with the largest variance between the two sides."""
    counts = np.bincount(colour.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    low, high = THRESHOLDS
    return min(max(int(np.argmax(np.nan_to_num(between, posinf=0))), low), high)


def on_background(region: Image.Image, colour: str) -> Image.Image:
    """Return a region in RGB; what the slide has no pixels for is background."""
    flat = Image.new("RGB", region.size, colour)
    flat.paste(region, mask=region.getchannel("A"))
    return flat


def _colour(slide: Any, grid: Grid, scale: float) -> NDArray[np.uint8]:
    """Return largest minus smallest channel [h, w], a pixel being `scale` pixels of level 0; read block by block."""
    width, height = (math.ceil(side / scale) for side in grid.extent)
    level = slide.get_best_level_for_downsample(scale)
    downsample = slide.level_downsamples[level]
    colour = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in _blocks(width, height, max(1, int(_BLOCK * downsample / scale))):
        corner = grid.origin[0] + round(left * scale), grid.origin[1] + round(top * scale)
        size = tuple(math.ceil(side * scale / downsample) for side in (right - left, bottom - top))
        region = on_background(slide.read_region(corner, level, size), "white")
        pixels = np.asarray(region.resize((right - left, bottom - top), Image.Resampling.BOX))
        colour[top:bottom, left:right] = pixels.max(2) - pixels.min(2)
    return colour


def _blocks(width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield left, top, min(left + side, width), min(top + side, height)


def _shares(tissue: NDArray[np.bool_], grid: Grid, scale: float) -> NDArray[np.float64]:
    """Return the share of tissue of every tile [rows, columns], from sums over all above and to the left."""
    sums = np.pad(tissue.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
    rows, columns = (np.arange(count) * grid.step / scale for count in grid.shape)
    side = grid.step / scale
    top, left = (np.floor(starts).astype(int) for starts in (rows, columns))
    bottom = np.minimum(np.ceil(rows + side).astype(int), tissue.shape[0])
    right = np.minimum(np.ceil(columns + side).astype(int), tissue.shape[1])
    inside = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return np.asarray(inside / ((bottom - top)[:, None] * (right - left)[None, :]), np.float64)
