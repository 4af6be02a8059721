"""Slides as scanners write them, small: pyramidal tiled TIFF files that OpenSlide reads."""

from pathlib import Path

import numpy as np
import tifffile

GLASS = (241, 240, 242)
TISSUE = (200, 120, 170)


def glass(width: int = 1024, height: int = 768) -> np.ndarray:
    """Glass with the noise of a camera, [height, width, 3]."""
    noise = np.random.default_rng(0).integers(-2, 3, (height, width, 1))
    return (np.array(GLASS) + noise).astype(np.uint8)


def with_tissue(pixels: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Stain a rectangle: its colour tells where a pixel lies, by 4 pixels."""
    rows, columns = np.mgrid[top:bottom, left:right]
    pixels[top:bottom, left:right] = TISSUE
    pixels[top:bottom, left:right, 0] = 150 + rows // 16 % 64
    pixels[top:bottom, left:right, 1] = 40 + columns // 16 % 64
    return pixels


def write_slide(
    path: Path, pixels: np.ndarray, *, mpp: float | None = 0.5, levels: tuple[int, ...] = (1, 2, 4), notes: str = ""
) -> Path:
    """Write `pixels` as level 0 and means of them as further levels; `mpp` as the resolution in centimetres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for factor in levels:
            height, width = (side // factor for side in pixels.shape[:2])
            blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
            options = resolution if factor == 1 else {"subfiletype": 1}
            level = blocks.mean((1, 3)).round().astype(np.uint8)
            tiff.write(
                level,
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                description=notes if factor == 1 else None,
                metadata=None,
                **options,
            )
    return path
