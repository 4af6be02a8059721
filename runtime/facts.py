"""What is declared about a backbone: plain data, standard library only."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Triple = tuple[float, ...]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes model input.

    The shorter side is resized to `resize` pixels (antialiased), the centre `size` x `size` is cut out, 8-bit values
    are scaled to [0, 1], then `(x - mean) / std` per channel.

    Volumes (`spatial_dims=3`) are resampled and windowed by the caller: their spacing is not ours to know.

    Attributes:
        size: Side of the square model input, in pixels; of a volume, the side of the cube, in voxels.
        resize: Length of the shorter side before the crop, in pixels; `None` means `size`.
        interpolation: Resampling filter of the resize, as Pillow names it.
        channels: 3 (RGB) or 1 (grey).
        mean, std: Per channel, on the [0, 1] scale; `None` where the publisher states none.
        spatial_dims: 2 for images [B, C, H, W], 3 for volumes [B, C, D, H, W].
    """

    size: int = 224
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    channels: int = 3
    mean: Triple | None = None
    std: Triple | None = None
    spatial_dims: int = 2

    @property
    def axes(self) -> str:
        """Names of the spatial axes, as messages write them."""
        return "H, W" if self.spatial_dims == 2 else "D, H, W"


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
class LocalFile:
    """A checkpoint on this machine: a `.safetensors` file or a PyTorch checkpoint.

    A relative path is looked up where Python was started. Manifests record the file's name and SHA-256, never its
    folder: the path of one machine says nothing on another.
    """

    path: str | os.PathLike[str]

    def __str__(self) -> str:
        return f"file:{Path(self.path).name}"


@dataclass(frozen=True)
class Manual:
    """Weights that only a person can fetch (Google Drive, a gated data set): where the file is to be had."""

    where: str

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True)
class LibraryInit:
    """No published weights: the library's own initialisation, from a fixed seed."""

    seed: int = 0

    def __str__(self) -> str:
        return f"library initialisation, seed {self.seed}"


@dataclass(frozen=True)
class TorchHub:
    """Weights that a torch.hub entry loads by itself, by code of its repository (`owner/repo:ref`, or a folder)."""

    repository: str
    entry: str
    local: bool = False

    def __str__(self) -> str:
        return f"torch.hub:{Path(self.repository).name if self.local else self.repository} {self.entry}"


@dataclass(frozen=True)
class Unpublished:
    """No weights were published: the architecture alone, for random weights or a file of one's own."""

    reason: str

    def __str__(self) -> str:
        return f"none: {self.reason}"


Published = HubFile | Url | LocalFile | Manual | Unpublished
Source = Published | LibraryInit | TorchHub
