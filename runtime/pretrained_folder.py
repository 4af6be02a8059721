"""What the JSON files of a folder written by transformers' `save_pretrained` declare. Standard library only."""

import json
from pathlib import Path
from typing import Any, cast

from runtime.errors import RegistrationError
from runtime.facts import Interpolation, LocalFile, Preprocessing, Triple

# Pillow's numbers for its filters.
_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def described(name: str, folder: Path) -> tuple[dict[str, Any], LocalFile]:
    """Return the facts that `folder` declares (preprocessing, depth, patch size), and its checkpoint.

    Raises:
        RegistrationError: It holds no readable `config.json`.
    """
    config = _read(name, folder / "config.json")
    facts: dict[str, Any] = {}
    if type(depth := config.get("num_hidden_layers")) is int:
        facts["depth"] = depth
    if type(patch := config.get("patch_size")) is int:
        facts["patch_size"] = patch
    processor = folder / "preprocessor_config.json"
    declared = _read(name, processor) if processor.is_file() else {}
    facts["preprocessing"] = _preprocessing(declared, config)
    there = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
    return facts, LocalFile(there[0] if there else folder / _WEIGHTS[0])


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistrationError(
            f"{name!r}: {path} cannot be read: {error}. Name a folder that transformers' save_pretrained wrote, "
            "or a repository of the Hugging Face hub."
        ) from error
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def _preprocessing(processor: dict[str, Any], config: dict[str, Any]) -> Preprocessing:
    resize, crop = _side(processor.get("size")), _side(processor.get("crop_size"))
    cropped = crop is not None and processor.get("do_center_crop", True)
    native = config.get("image_size")
    size = crop if cropped else resize or (native if type(native) is int else 224)
    normalised = processor.get("do_normalize", True)
    return Preprocessing(
        size=size or 224,
        resize=resize if cropped and resize != crop else None,
        interpolation=_FILTERS.get(processor.get("resample", 3), "bicubic"),
        channels=config.get("num_channels", 3),
        mean=_triple(processor.get("image_mean")) if normalised else None,
        std=_triple(processor.get("image_std")) if normalised else None,
    )


def _side(size: Any) -> int | None:
    """Return the pixels of `224`, `{"shortest_edge": 256}` or `{"height": 224, "width": 224}`."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if type(size) is int else None


def _triple(values: Any) -> Triple | None:
    return tuple(float(value) for value in values) if isinstance(values, list) else None
