"""Images that the ranges of static int8 are taken from: one's own folder, or pieces of the bundled tissue image."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from exporters.inputs import TILE
from runtime.errors import InputError
from runtime.facts import HALF, Preprocessing
from runtime.preprocess import preprocess

Batch = NDArray[np.float32]

BATCH = 8
# Fewer say too little about what other images bring.
FEWEST = 8
COUNT = 64
BUNDLED = 16
# Instead of a folder: ranges are taken from each batch as it comes.
DYNAMIC = "none"
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# What other stains, cameras and subjects would change.
CHANGES: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda picture: picture,
    ImageOps.invert,
    lambda picture: ImageEnhance.Brightness(picture).enhance(0.4),
    lambda picture: ImageEnhance.Contrast(picture).enhance(2.5),
    lambda picture: Image.merge("RGB", picture.split()[::-1]),
    ImageOps.grayscale,
    lambda picture: ImageEnhance.Color(picture).enhance(3),
    ImageOps.solarize,
)


def load_calibration(
    folder: str | Path, facts: Preprocessing, size: tuple[int, int], count: int = COUNT
) -> list[Batch]:
    """Return `count` images of a folder and its subfolders (all, if there are fewer), as batches of model input.

    Of more images than `count`, every so manieth in the order of their paths is taken: the same ones each time.

    Args:
        folder: Holds images as files.
        facts: What the publisher declares of the model's input.
        size: Height and width of the model's input.
        count: How many images to take, at least 8.

    Returns:
        Batches float32 [B, C, H, W] of at most 8 images.

    Raises:
        InputError: The folder is missing, holds too few images or one that cannot be read, or the backbone does not
            take pictures.
    """
    _require_pictures(facts)
    if count < FEWEST:
        raise InputError(f"Calibration with {count} images: static int8 needs at least {FEWEST} to take ranges from.")
    chosen = _choose(Path(folder), count)
    groups = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
    return [np.concatenate([_read(path, facts, size) for path in group]) for group in groups]


def calibration_id(folder: str | None) -> str:
    """Return what tells the images of one calibration from those of another.

    Args:
        folder: Of images; `None` for the bundled tissue, `none` for ranges taken from each batch.

    Raises:
        InputError: The folder is missing or holds too few images.
    """
    if folder is None or folder == DYNAMIC:
        return folder or "bundled tissue"
    digest = hashlib.sha256()
    for path in _choose(Path(folder), COUNT):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"images {digest.hexdigest()[:12]}"


def bundled_calibration(facts: Preprocessing, size: tuple[int, int]) -> list[Batch]:
    """Return 16 crops of the bundled tissue image in changed colours, and two images of noise, as model input.

    It serves where no folder is given. Images of the kind that the backbone will see give better ranges.

    Raises:
        InputError: The backbone does not take pictures.
    """
    if facts.mean is None or facts.std is None:
        neutral = HALF[: facts.channels]
        facts = dataclasses.replace(facts, mean=neutral, std=neutral)
    _require_pictures(facts)
    noise = np.random.default_rng(0).standard_normal((2, facts.channels, *size), dtype=np.float32)
    with Image.open(TILE) as tile:
        tissue = tile.convert("RGB")
    pictures = [_piece(tissue, index) for index in range(BUNDLED)]
    tiles = [preprocess(piece.resize(size[::-1]), dataclasses.replace(facts, resize=None), size) for piece in pictures]
    made = np.concatenate([*tiles, noise])
    return [made[i : i + BATCH] for i in range(0, len(made), BATCH)]


def _choose(folder: Path, count: int) -> list[Path]:
    paths = _find(folder)
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths)), dtype=int))]


def _require_pictures(facts: Preprocessing) -> None:
    if facts.spatial_dims != 2:
        raise InputError(
            "Calibration images are pictures, and this backbone takes volumes: static int8 is not made for it. "
            "Build it in fp32, fp16 or bf16."
        )
    if facts.mean is None or facts.std is None:
        raise InputError(
            "This backbone declares no mean and std, so a folder of calibration images cannot be normalised for it. "
            "Build int8 without a folder, or declare them where the backbone is registered."
        )


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"Calibration images: {folder} {what}. Name a folder of at least {FEWEST} images of the kind that the "
            "backbone will see, or leave --calibration out, to calibrate on the bundled tissue image."
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if len(paths) < FEWEST:
        held = f"holds {len(paths)} image{'s' * (len(paths) != 1)}" if paths else "holds no image"
        raise InputError(
            f"Calibration images: {folder} {held} ({', '.join(ENDINGS)}, subfolders included); at least {FEWEST} are "
            "needed. 64 of the kind that the backbone will see are a good choice."
        )
    return paths


def _read(path: Path, facts: Preprocessing, size: tuple[int, int]) -> Batch:
    try:
        with Image.open(path) as picture:
            return preprocess(picture, facts, size)
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(
            f"Calibration images: {path} cannot be used: {str(error).rstrip('.')}. Remove it from the folder or "
            "replace it."
        ) from error


def _piece(tissue: Image.Image, index: int) -> Image.Image:
    """Return a crop of the tissue, from all of its height to a quarter, turned and with its colours changed."""
    side = min(tissue.size) // (1 + index % 4)
    left, top = index * 37 % (tissue.width - side + 1), index * 53 % (tissue.height - side + 1)
    crop = tissue.crop((left, top, left + side, top + side)).rotate(90 * (index % 4))
    return CHANGES[index // 2 % len(CHANGES)](crop).convert("RGB")
