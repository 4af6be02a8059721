"""What a loaded backbone tells of itself, as far as an output folder must know; a worker of a cluster can send it."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.backbone import Backbone
from runtime.embedding.engine import probe
from runtime.machine import onnxruntime_distributions


@dataclass(frozen=True)
class Served:
    """What serves; picklable.

    Attributes:
        info: The backbone's own `info`.
        shapes: Of each output for one image.
        versions: Of what computes the numbers, by package.
    """

    info: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    versions: Mapping[str, str]


def describe(backbone: Backbone) -> Served:
    """Return what a backbone tells of itself, after running it once.

    Raises:
        InputError: The backbone takes volumes, or its publisher declares no normalisation.
    """
    versions = {name: importlib.metadata.version(name) for name in _packages(backbone.backend)}
    return Served(backbone.info, probe(backbone), versions)


def _packages(backend: str) -> list[str]:
    serving = {"onnx": onnxruntime_distributions(), "openvino": ("openvino",)}.get(backend, ("torch",))
    return ["backbone-runtime", "numpy", "Pillow", *serving]
