"""Small generated data sets in the layouts that eva reads: BACH (a class per picture), CoNSeP (a class per pixel)."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# Each class has a colour of its own, and pictures stray from it: a head learns some of them, not all.
COLOURS = np.array([(150, 95, 145), (175, 115, 150), (155, 125, 175), (180, 135, 140)], np.float64)
BACKGROUND = np.array((225, 205, 220), np.float64)
BACH = ("Benign", "InSitu", "Invasive", "Normal")
# Pixels a side: eva resizes BACH's to the model's; CoNSeP's are cut in patches of 250, one a picture here.
TILE, PATCH = 48, 250


def write_bach(root: Path) -> Path:
    """Write 400 pictures, 100 of each class, which is how many eva insists on."""
    drawn = np.random.default_rng(0)
    for label, name in enumerate(BACH):
        folder = root / "ICIAR2018_BACH_Challenge" / "Photos" / name
        folder.mkdir(parents=True)
        for number in range(100):
            colour = COLOURS[label] + drawn.normal(0, 12, 3)
            _save(colour + drawn.normal(0, 25, (TILE, TILE, 3)), folder / f"{name.lower()}{number + 1:03}.tif")
    return root


def write_consep(root: Path) -> Path:
    """Write 27 pictures to train on and 14 to test on, each with the type of every pixel: 0 to 7."""
    drawn = np.random.default_rng(1)
    for split, count in (("Train", 27), ("Test", 14)):
        for folder in ("Images", "Labels"):
            (root / split / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            types = _nuclei(drawn)
            seen = np.where(types == 0, 0, 1 + types % len(COLOURS))
            picture = np.vstack([BACKGROUND, COLOURS])[seen] + drawn.normal(0, 15, (PATCH, PATCH, 3))
            name = f"{split.lower()}_{number}"
            _save(picture, root / split / "Images" / f"{name}.png")
            savemat(root / split / "Labels" / f"{name}.mat", {"type_map": types.astype(np.float64)})
    return root


def _nuclei(drawn: np.random.Generator) -> np.ndarray:
    """Return the types of one picture's pixels: twelve large nuclei of random types on background."""
    types = np.zeros((PATCH, PATCH), np.int64)
    rows, columns = np.mgrid[:PATCH, :PATCH]
    for _ in range(12):
        row, column, radius = *drawn.integers(0, PATCH, 2), drawn.integers(15, 40)
        types[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = drawn.integers(1, 8)
    return types


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture.round().clip(0, 255).astype(np.uint8)).save(path)
