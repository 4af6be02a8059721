"""What timm offers, as data: every architecture and pretrained tag, read from a table without timm or torch.

The table is made by `python -m exporters.timm_table`; a newer timm than it knows is asked itself.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runtime.facts import HubFile, Preprocessing, Source, Unpublished, Url

TABLE = Path(__file__).with_name("timm_models.json")


@dataclass(frozen=True)
class Tag:
    """One set of pretrained weights of an architecture.

    Attributes:
        input_size: Height and width the weights were made for, in pixels.
        crop_pct: Side of the centre crop over the side of the resized image.
        crop_mode: `center`; `squash` resizes to the square without a crop, `border` pads to it.
        interpolation: Filter of the resize.
        mean, std: Per channel, on the [0, 1] scale.
        licence: As timm states it.
        hub: Repository on the Hugging Face hub, if the weights are there.
        url: File elsewhere, if they are.
    """

    input_size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str | None
    hub: str | None
    url: str | None

    @property
    def preprocessing(self) -> Preprocessing:
        """The tag's preprocessing; timm rounds the resize down. Oblong sizes are declared by their shorter side."""
        size = min(self.input_size)
        resize = math.floor(size / self.crop_pct)
        return Preprocessing(
            size=size,
            resize=None if resize == size else resize,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    @property
    def source(self) -> Source:
        """Where the weights are."""
        if self.hub:
            return HubFile(self.hub)
        return Url(self.url) if self.url else Unpublished("timm publishes no weights under this name")


@dataclass(frozen=True)
class Architecture:
    """One timm architecture.

    Attributes:
        family: timm's module, such as `resnet`.
        parameters: Number of them, without a classifier.
        depth: Number of feature maps that can be chosen from.
        patch_size: Image sides must be multiples of it, in pixels.
        tags: Pretrained weights by tag, the default first; the tag of an architecture without weights is empty.
    """

    family: str
    parameters: int
    depth: int
    patch_size: int
    tags: Mapping[str, Tag]


@cache
def architectures() -> dict[str, Architecture]:
    """Return every architecture of the table by its timm name."""
    data = json.loads(TABLE.read_text(encoding="utf-8"))
    presets, licences = data["presets"], data["licences"]
    return {name: _architecture(name, row, presets, licences) for name, row in data["architectures"].items()}


def timm_version() -> str:
    """Return the timm release that the table was made from."""
    return str(json.loads(TABLE.read_text(encoding="utf-8"))["timm"])


def _architecture(name: str, row: list[Any], presets: list[list[Any]], licences: list[str | None]) -> Architecture:
    family, parameters, depth, patch_size, tags = row
    return Architecture(
        family, parameters, depth, patch_size, {tag: _tag(name, tag, cell, presets, licences) for tag, cell in tags}
    )


def _tag(name: str, tag: str, cell: list[Any], presets: list[list[Any]], licences: list[str | None]) -> Tag:
    preset, licence, *elsewhere = cell
    height, width, crop_pct, crop_mode, interpolation, mean, std = presets[preset]
    place = elsewhere[0] if elsewhere else f"timm/{name}.{tag}"
    in_hub = bool(place) and "://" not in place
    return Tag(
        input_size=(height, width),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        licence=licences[licence],
        hub=place if in_hub else None,
        url=place if place and not in_hub else None,
    )


def to_json(known: Mapping[str, Architecture], version: str) -> str:
    """Return the table's text: one line per architecture; what many tags share is written once."""
    presets: dict[str, int] = {}
    licences: dict[str | None, int] = {}

    def cell(name: str, tag: str, facts: Tag) -> list[Any]:
        preset = [*facts.input_size, facts.crop_pct, facts.crop_mode, facts.interpolation, facts.mean, facts.std]
        place = facts.hub or facts.url or ""
        indices = [
            presets.setdefault(json.dumps(preset), len(presets)),
            licences.setdefault(facts.licence, len(licences)),
        ]
        return indices if place == f"timm/{name}.{tag}" else [*indices, place]

    rows = []
    for name, a in sorted(known.items()):
        tags = [[tag, cell(name, tag, facts)] for tag, facts in a.tags.items()]
        row = json.dumps([a.family, a.parameters, a.depth, a.patch_size, tags], separators=(",", ":"))
        rows.append(f"{json.dumps(name)}:{row}")
    shared = ",\n".join(presets)
    head = f'"timm":{json.dumps(version)},\n"presets":[\n{shared}\n],\n"licences":{json.dumps(list(licences))}'
    return f'{{{head},\n"architectures":{{\n' + ",\n".join(rows) + "\n}}\n"
