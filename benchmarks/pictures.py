"""What is embedded: tiles of real tissue, as pictures, as uint8 and as model input; and what decoding one costs."""

import io
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exporters.inputs import TILE
from runtime.facts import HALF, Preprocessing
from runtime.preprocess import preprocess

# Of the bundled picture; each tile is another piece of it.
SIDE = 224
STEP, STEPS = 24, 5


def tiles(size: Sequence[int], count: int) -> list[Image.Image]:
    """Return `count` different pictures of tissue (repeated after 50), RGB, of a height and width in pixels."""
    with Image.open(TILE) as opened:
        picture = opened.convert("RGB")
    made = []
    for number in range(count):
        column, row = number % STEPS, number // STEPS % STEPS
        left, top = (
            min(STEP * position, side - SIDE) for position, side in zip((column, row), picture.size, strict=True)
        )
        piece = picture.crop((left, top, left + SIDE, top + SIDE)).resize((size[1], size[0]))
        made.append(piece.transpose(Image.Transpose.ROTATE_180) if number // STEPS**2 % 2 else piece)
    return made


def batch(
    facts: Preprocessing, size: tuple[int, int], count: int
) -> dict[str, NDArray[np.uint8] | NDArray[np.float32]]:
    """Return the same tiles twice: `float32`, model input [B, C, H, W], and `uint8`, [B, H, W, C]."""
    mode = "RGB" if facts.channels == 3 else "L"
    pixels = np.stack([np.asarray(tile.convert(mode)) for tile in tiles(size, count)])
    # Of this very size: neither resized nor cropped.
    exact = replace(_normalised(facts), size=min(size), resize=None)
    return {"uint8": pixels.reshape(count, *size, facts.channels), "float32": preprocess(pixels, exact, size)}


def seconds_per_tile(facts: Preprocessing, size: tuple[int, int], repeats: int = 30) -> dict[str, list[float]]:
    """Return the seconds of each of `repeats` turns on one CPU: `decode` a JPEG tile, `preprocess` it."""
    jpegs = [jpeg(tile) for tile in tiles(size, 10)]
    known = _normalised(facts)
    seconds: dict[str, list[float]] = {"decode": [], "preprocess": []}
    for number in range(-3, repeats):
        started = time.perf_counter()
        with Image.open(io.BytesIO(jpegs[number % len(jpegs)])) as opened:
            picture = opened.convert("RGB")
        decoded = time.perf_counter()
        preprocess(picture, known, size)
        done = time.perf_counter()
        if number >= 0:
            seconds["decode"].append(decoded - started)
            seconds["preprocess"].append(done - decoded)
    return seconds


def jpeg(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _normalised(facts: Preprocessing) -> Preprocessing:
    neutral = HALF[: facts.channels]
    return replace(facts, mean=facts.mean or neutral, std=facts.std or neutral)
