"""The gate: an artifact is published only if its numbers are the eager backbone's."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import VerificationError
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


@dataclass(frozen=True)
class Limits:
    """What a precision may differ by.

    Attributes:
        relative_rms: Root mean square of the difference over that of the reference, worst image.
        cosine: Smallest cosine per image.
        token_cosine: Smallest cosine per token (position of a feature map).
        float64_ratio: Error against float64, over the eager backbone's own error at the same precision.
    """

    cosine: float
    token_cosine: float
    relative_rms: float = math.inf
    float64_ratio: float = math.inf


# Where a batch of floats holds the image whose pixels no 8-bit picture can have. Of int8, whose ranges are those of
# pictures, it asks only to stay finite.
EXTREME = 3


# A float32 number is stored to half of this, relatively: where eager is luckier than that, luck is not the yardstick.
EPSILON = float(np.finfo(np.float32).eps)
# By precision and spatial dimensions: instance norms over a whole volume sum a million numbers in another order.
# Eager has no int8 to compare with: its cosine to float32 decides.
_HALF = Limits(cosine=0.9995, token_cosine=0.999, float64_ratio=1.5)
_INT8 = Limits(cosine=0.995, token_cosine=-1.0)
LIMITS = {
    ("fp32", 2): Limits(0.999999, 0.999999, relative_rms=1e-5, float64_ratio=2.0),
    ("fp32", 3): Limits(0.999999, 0.999999, relative_rms=1e-4, float64_ratio=2.0),
    **{(precision, dims): _HALF for precision in ("fp16", "bf16") for dims in (2, 3)},
    **{("int8", dims): _INT8 for dims in (2, 3)},
}


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


@dataclass(frozen=True)
class Measured:
    """What verification measured of an artifact.

    Attributes:
        parities: Per output.
        float64: Per output: eager's relative RMS error against float64, and the artifact's.
        served_by: The backend, and onnxruntime's provider, that computed it.
    """

    parities: Sequence[Parity]
    float64: Sequence[tuple[float, float]]
    served_by: str


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


def of_pictures(batches: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the outputs without those for the image that no picture can be."""
    return [
        [np.delete(output, [EXTREME], axis=0) if len(output) > EXTREME else output for output in b] for b in batches
    ]


def require_finite(who: str, names: Sequence[str], batches: list[list[Any]]) -> None:
    """Raise if any value is NaN or infinite."""
    for batch in batches:
        for name, output in zip(names, batch, strict=True):
            bad = int(output.size - np.isfinite(output).sum())
            if bad:
                raise VerificationError(f"{name} of {who}: {bad} of {output.size} values are not finite")


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


def gate(parities: Sequence[Parity], limits: Limits) -> None:
    """Raise unless every output keeps the limits. Written so that NaN fails.

    Raises:
        VerificationError: Naming each output that does not.
    """
    problems = []
    for parity in parities:
        if not parity.relative_rms <= limits.relative_rms:
            problems.append(f"{parity.name}: relative RMS {parity.relative_rms:.3g} > {limits.relative_rms:g}")
        for what, cosine, limit in (
            ("image", parity.min_cosine, limits.cosine),
            ("token", parity.min_token_cosine, limits.token_cosine),
        ):
            if not cosine >= limit:
                problems.append(f"{parity.name}: min cosine per {what} {cosine:.7f} < {limit}")
    if problems:
        raise VerificationError("; ".join(problems))


def gate_float64(errors: Sequence[tuple[float, float]], limits: Limits) -> None:
    """Raise unless the artifact's error against float64 is of the size of the eager backbone's own.

    Args:
        errors: Per output: eager's relative RMS error against float64, and the artifact's.
        limits: Of the precision.

    Raises:
        VerificationError: It is larger than the limit times eager's.
    """
    for own, got in errors:
        if not got <= limits.float64_ratio * max(own, EPSILON):
            raise VerificationError(
                f"relative RMS error against float64 is {got:.3g}, eager's own is {own:.3g}: "
                f"more than {limits.float64_ratio:g} times as large"
            )


def relative_rms(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the RMS of the difference over the RMS of the reference."""
    exact = np.asarray(reference, np.float64)
    error = np.sqrt(((np.asarray(other, np.float64) - exact) ** 2).mean())
    return float(_over(error, np.sqrt((exact**2).mean())))
