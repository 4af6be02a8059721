"""What is declared about a backbone: plain data, standard library only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Triple = tuple[float, ...]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes model input.

    The shorter side is resized to `resize` pixels (antialiased), the centre `size` x `size` is cut out, 8-bit values
    are scaled to [0, 1], then `(x - mean) / std` per channel.

    Attributes:
        size: Side of the square model input, in pixels.
        resize: Length of the shorter side before the crop, in pixels; `None` means `size`.
        interpolation: Resampling filter of the resize, as Pillow names it.
        channels: 3 (RGB) or 1 (grey).
        mean, std: Per channel, on the [0, 1] scale; `None` where the publisher states none.
    """

    size: int = 224
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    channels: int = 3
    mean: Triple | None = None
    std: Triple | None = None


StateDict = Mapping[str, Any]
Convert = Callable[[StateDict], StateDict]


@dataclass(frozen=True)
class HubFile:
    """Weights in a Hugging Face model repository; the first of `filenames` that exists is taken."""

    repo: str
    filenames: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Url:
    """A checkpoint at a URL, with the checksum its publisher states (when one does)."""

    url: str
    sha256: str | None = None
    md5: str | None = None

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class LibraryInit:
    """No published weights: the library's own initialisation, from a fixed seed."""

    seed: int = 0

    def __str__(self) -> str:
        return f"library initialisation, seed {self.seed}"


@dataclass(frozen=True)
class Unpublished:
    """No weights were published: the architecture alone, for random weights or a file of one's own."""

    reason: str

    def __str__(self) -> str:
        return f"none: {self.reason}"


Source = HubFile | Url | LibraryInit | Unpublished
