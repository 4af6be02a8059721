"""What the registry holds: a backbone's function with its declared facts, and families of names. Standard library."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from runtime.facts import Preprocessing, Source

# Parameters of a builder that load_model fills in by itself when the builder has them.
INJECTED = ("out_indices", "image_size", "weights")


@dataclass(frozen=True)
class BackboneSpec:
    """A registered backbone: the function that builds it, and what is declared about it.

    Attributes:
        name: Registry name, `family/publisher_model`.
        build: Function returning the `torch.nn.Module`; stored untouched.
        aliases: Former names that resolve to this one; not listed.
        preprocessing: Image size, channels, mean, std, interpolation.
        source: Where the pretrained weights come from; `None` when `build` loads its own.
        licence: Licence of the weights, as the publisher states it.
        gated: Whether the publisher wants terms to be accepted before the download.
        depth: Number of blocks that `out_indices` can address; `None` when unknown.
        patch_size: Image sides must be multiples of it, in pixels.
        extra: The extra of this package whose libraries `build` needs beyond torch and timm.
    """

    name: str
    build: Callable[..., Any]
    aliases: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    source: Source | None = None
    licence: str | None = None
    gated: bool = False
    depth: int | None = None
    patch_size: int = 1
    extra: str | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the builder's parameters."""
        return tuple(inspect.signature(self.build).parameters)

    @property
    def options(self) -> tuple[str, ...]:
        """The builder's own options, such as `include_patch_tokens`."""
        return tuple(name for name in self.parameters if name not in INJECTED)

    @property
    def defaults(self) -> dict[str, Any]:
        """Default of each of the builder's parameters; `inspect.Parameter.empty` where there is none."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}


@dataclass(frozen=True)
class Family:
    """Backbones too many to register one by one: all that share the first part of their name.

    Attributes:
        prefix: Start of their names, such as `timm/`.
        resolve: Returns the backbone of a full name, or `None`; equal names give the same object.
        names: Returns the full names that a glob could mean. Must not import torch.
    """

    prefix: str
    resolve: Callable[[str], BackboneSpec | None]
    names: Callable[[str], Iterable[str]]
