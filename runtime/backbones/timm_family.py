"""`timm/<architecture>` and `timm/<architecture>.<tag>`: every model of timm, its facts read from a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from runtime.backbones import timm_installed, timm_table
from runtime.registry import register_family
from runtime.spec import BackboneSpec, Family

if TYPE_CHECKING:
    from torch import nn

    from runtime.backbones.timm_vit import ImageSize
    from runtime.out_indices import OutIndices
    from runtime.weights import Weights

PREFIX = "timm/"


@dataclass(frozen=True)
class TimmBuilder:
    """Builds one timm model; a function as the registry wants it that can be pickled.

    Attributes:
        model: timm's name, with a tag when one was asked for.
        depth: Number of feature maps that can be chosen from.
        native: Height and width that the weights were made for, in pixels.
    """

    model: str
    depth: int
    native: tuple[int, int]

    def __post_init__(self) -> None:
        # What functions have, and messages and commands tell.
        object.__setattr__(self, "__name__", self.model)
        object.__setattr__(self, "__qualname__", f"TimmBuilder({self.model!r})")

    def __call__(
        self, weights: "Weights", out_indices: "OutIndices" = None, image_size: "ImageSize | None" = None
    ) -> "nn.Module":
        """Return the embedding [B, D], or feature maps [B, C, h, w]; see `timm_model.build`."""
        from runtime.backbones import timm_model

        return timm_model.build(self, weights, out_indices, image_size)


def resolve(name: str) -> BackboneSpec | None:
    """Return the backbone `timm/<architecture>[.<tag>]`; `None` when timm has none such.

    The table comes first; what it does not know is asked of the installed timm, which may be newer.
    """
    model = name.removeprefix(PREFIX)
    architecture, _, tag = model.partition(".")
    return _spec(model, architecture, tag)


@cache
def _spec(model: str, architecture: str, tag: str) -> BackboneSpec | None:
    known = timm_table.architectures().get(architecture)
    if (known is None or (tag and tag not in known.tags)) and architecture in timm_installed.names():
        known = timm_installed.describe(architecture)
    if known is None or (tag and tag not in known.tags) or model.endswith("."):
        return None
    facts = known.tags[tag] if tag else next(iter(known.tags.values()))
    return BackboneSpec(
        name=f"{PREFIX}{model}",
        build=TimmBuilder(model, known.depth, facts.input_size),
        preprocessing=facts.preprocessing,
        source=facts.source,
        licence=facts.licence,
        depth=known.depth,
        patch_size=known.patch_size,
    )


def names(pattern: str) -> Iterable[str]:
    """Return the full names that a glob could mean: architectures; with a dot in it, those with their tags."""
    for architecture, known in timm_table.architectures().items():
        if "." not in pattern:
            yield f"{PREFIX}{architecture}"
        else:
            yield from (f"{PREFIX}{architecture}.{tag}" for tag in known.tags if tag)


register_family(Family(PREFIX, resolve, names))
