"""Image files to pixels, with Pillow. Everything wrong with a file becomes one error with a reason."""

import os
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from runtime.embedding.tile import Pixels, Tile
from runtime.errors import UnreadableImageError

# Named, because Pillow knows formats that run other programs (EPS) or are no pictures of tissue.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
# Tags of EXIF and TIFF.
_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _PLANES, _SAMPLES = 258, 259, 262, 274, 284, 339
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# Pixels that are converted at once: what a conversion holds meanwhile is several times the size of its result.
_BAND = 2**20


class LargeImage(Exception):  # noqa: N818  (nothing is wrong with it)
    """An image has more pixels than the caller has room for."""


def decode(tile: Tile, most: int | None = None) -> Pixels:
    """Return the pixels of `tile`: uint8 [H, W, 3], red, green, blue. Its content decides, not its name.

    Transparency lies on white, 16 bits are scaled to 8, CMYK is converted without a colour profile, an EXIF orientation
    is applied, the first page or frame is taken. Can be called by several threads at once.

    Args:
        tile: What is decoded.
        most: Pixels that the caller has room for; `None` for as many as Pillow takes.

    Raises:
        UnreadableImageError: Corrupt, cut short, empty, no image, larger than Pillow's limit, or of values that have no
            known white (32-bit, floating point). The message is the reason, without the tile's name.
        LargeImage: It has more than `most` pixels; none of them was decoded.
    """
    image = tile.image
    if isinstance(image, UnreadableImageError):
        raise image
    if isinstance(image, np.ndarray):
        _check_room(image.size // 3, most)
        return _checked(image)
    if isinstance(image, bytes):
        return _decode(BytesIO(image), len(image), most)
    try:
        with image.open("rb") as file:
            return _decode(file, os.fstat(file.fileno()).st_size, most)
    except OSError as error:
        raise UnreadableImageError(f"{image} cannot be opened: {error.strerror or error}") from error


def _checked(pixels: Pixels) -> Pixels:
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
        return pixels
    raise UnreadableImageError(f"an array of {pixels.dtype} {list(pixels.shape)} is not pixels: uint8 [H, W, 3] is")


def _decode(file: BinaryIO, size: int, most: int | None) -> Pixels:
    if size == 0:
        raise UnreadableImageError("it is empty (0 bytes)")
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image)
            _check_room(image.width * image.height, most)
            if isinstance(image, TiffImageFile):
                _check_samples(image)
            image.load()
            return _in_bands(_upright(image), _conversion(image))
    except (UnreadableImageError, LargeImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to
        raise UnreadableImageError(_reason(error, file)) from error


def _check_size(image: Image.Image) -> None:
    """Refuse what Pillow only warns of."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


def _check_room(pixels: int, most: int | None) -> None:
    if most is not None and pixels > most:
        raise LargeImage


def _check_samples(image: TiffImageFile) -> None:
    """Refuse what Pillow decodes to other values than the file holds."""
    tags = image.tag_v2
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (8,))) > 8 and tags.get(_COMPRESSION, 1) == 1:
        raise UnreadableImageError(
            "16 bits in separate planes, not compressed, are not read: save it with pixels interleaved"
        )
    if 2 in tags.get(_SAMPLES, ()):
        raise UnreadableImageError("its values have signs, and so no known black: convert it to unsigned 8 or 16 bits")


def _upright(image: Image.Image) -> Image.Image:
    """Turn a photograph as its camera was held; Pillow does so itself for TIFF alone."""
    if "exif" not in image.info:
        return image
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # damaged notes about a picture are no damage to the picture
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what makes an RGB image of `image`, or of any rows of it."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return lambda band: band
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):
        # In a TIFF whose 0 is white, which Pillow minds in 8 bits only.
        inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
        return partial(_eight_bits, inverted=inverted)
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise UnreadableImageError(f"its {kind} values have no known white: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        return _on_white
    return lambda band: band.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Return the converted pixels; of a large image, some rows at a time."""
    width, height = image.size
    rows = max(1, _BAND // width)
    if rows >= height:
        return np.asarray(convert(image))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(convert(image.crop((0, top, width, bottom))))
    return pixels


def _eight_bits(image: Image.Image, inverted: bool) -> Image.Image:
    """Return round(values / 257): 65535 is white."""
    values = np.asarray(image).astype(np.uint32)
    if inverted:
        values = 65535 - values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _reason(error: Exception, file: BinaryIO) -> str:
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(file)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return (
            f"it is too large ({error}; Pillow's limit against decompression bombs is {Image.MAX_IMAGE_PIXELS} pixels, "
            "PIL.Image.MAX_IMAGE_PIXELS). A whole slide is cut into tiles when its microns per pixel are given"
        )
    text = str(error) or type(error).__name__
    return f"it is damaged: {text}"


def _unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(12)
    known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if start.startswith(_SIGNATURES) or start[8:] == b"WEBP":
        return f"it begins as {known} does ({start!r}), but is damaged or of a variant that Pillow does not read"
    return f"it is no {known} image: it begins with {start!r}"
