"""Images to model input with numpy and Pillow alone: what the publishers' torchvision transforms compute."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import InputError
from runtime.facts import Preprocessing

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def preprocess(images: Any, facts: Preprocessing, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Return float32 [B, C, H, W] for one image or several.

    Args:
        images: A Pillow image, a uint8 array [H, W, 3] or [H, W], a batch [B, H, W, 3], or an iterable of such images.
        facts: What the publisher declares.
        size: Height and width of the result in pixels, when not the declared size.

    Raises:
        InputError: An image of another type or shape, no normalisation is declared, or the backbone takes volumes.
    """
    return normalise(resize(images, facts, size), facts)


def normalise(images: NDArray[np.uint8], facts: Preprocessing) -> NDArray[np.float32]:
    """Return float32 [B, C, H, W] for resized uint8 images [B, H, W, C], with the publisher's mean and std."""
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (facts.mean, facts.std))
    count, height, width, channels = images.shape
    made = np.empty((count, channels, height, width), np.float32)
    for image, planes in zip(images, made, strict=True):  # one at a time, and in place: it stays in the cache
        planes[...] = np.ascontiguousarray(image.transpose(2, 0, 1))
        planes /= 255
        planes -= mean
        planes /= std
    return made


def resize(images: Any, facts: Preprocessing, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return uint8 [B, H, W, C] for one image or several, resized and cropped as the publisher does.

    Arguments and errors are those of `preprocess`.
    """
    if facts.spatial_dims != 2:
        raise InputError(
            "preprocess() is for pictures; this backbone takes volumes. Resample and window them as its publisher did "
            "(its source is in model.info) and pass float32 [B, C, D, H, W] to the model."
        )
    if facts.mean is None or facts.std is None:
        raise InputError(
            "This backbone declares no mean and std, so an image cannot be normalised for it. "
            "Scale your data as its publisher did and pass float32 [B, C, H, W] to the model."
        )
    batch = [_one(image, facts, size or (facts.size, facts.size)) for image in _each(images)]
    if not batch:
        raise InputError("preprocess() got no image.")
    return np.stack(batch)


def _each(images: Any) -> Iterable[Any]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return [images] if images.ndim <= 3 else images
    if isinstance(images, Iterable) and not isinstance(images, str | bytes):
        return images
    raise InputError(f"preprocess() takes Pillow images or uint8 arrays, not {type(images).__name__}.")


def _one(image: Any, facts: Preprocessing, size: tuple[int, int]) -> NDArray[np.uint8]:
    picture = _in_mode(_checked(_picture(image)), "RGB" if facts.channels == 3 else "L")
    # At other sizes the publisher's ratio of resize to crop is kept.
    shorter = round((facts.resize or facts.size) * max(size) / facts.size)
    cropped = _crop(_resize(picture, shorter, FILTERS[facts.interpolation]), size)
    return np.asarray(cropped, dtype=np.uint8).reshape(*size, facts.channels)


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        plain = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        if plain.ndim == 2 or (plain.ndim == 3 and plain.shape[-1] in (3, 4)):
            return Image.fromarray(plain)
    what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(
        f"preprocess() takes Pillow images or uint8 arrays [H, W, 3] or [H, W], not a {what}. "
        "Model input that is already normalised goes to the model itself."
    )


def _checked(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits: nearly everything to white
        raise InputError(
            f"preprocess() takes 8-bit pictures, not one of mode {picture.mode!r}; scale its values to 0 to 255 first."
        )
    if 0 in picture.size:
        raise InputError(f"preprocess() got a picture {picture.width} pixels wide, {picture.height} pixels high.")
    return picture


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy it


def _resize(picture: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    width, height = picture.size
    if min(width, height) == shorter:
        return picture
    # The longer side is cut to an integer as torchvision does.
    target = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    return picture.resize(target, resample)


def _crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
