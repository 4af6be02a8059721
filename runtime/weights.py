"""Filling an architecture with weights: published, random, or the library's own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runtime.download import fetch
from runtime.errors import BackboneError, WeightsError
from runtime.facts import Published, TorchHub
from runtime.loud import draw_loud

Tensors = dict[str, Tensor]
Adapt = Callable[[Tensors, nn.Module], Tensors]


class Weights(Protocol):
    """What a builder receives as `weights`: it constructs the module and fills it."""

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:
        """Return `create()` with its weights in place; `adapt` maps a published state dict to the module's keys."""
        ...


class NoWeights:
    """No storage at all: for counting parameters."""

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:  # noqa: ARG002
        """Return `create()` on the meta device."""
        with torch.device("meta"):
            return create()


@dataclass(frozen=True)
class LibraryWeights:
    """The library's own initialisation from a fixed seed; the caller's random state is left alone."""

    seed: int = 0

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:  # noqa: ARG002
        """Return `create()` under the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return create()


@dataclass(frozen=True)
class LoudWeights:
    """Random weights in which every parameter matters."""

    seed: int = 0

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:  # noqa: ARG002
        """Return `create()` with every parameter drawn anew."""
        model = _skeleton(create)
        if any(p.is_meta for p in model.parameters()):
            model = model.to_empty(device="cpu")
        draw_loud(model, self.seed)
        return model


@dataclass
class PublishedWeights:
    """The publisher's weights. `revision` says which, once they are loaded."""

    source: Published | TorchHub
    model_name: str
    gated: bool = False
    revision: str | None = field(default=None, init=False)

    def construct(self, create: Callable[[], nn.Module], adapt: Adapt | None = None) -> nn.Module:
        """Return `create()` holding the published weights.

        Raises:
            WeightsError: The source cannot be reached, or its tensors are not exactly the architecture's.
        """
        if isinstance(self.source, TorchHub):
            raise WeightsError(
                f"{self.model_name}: {self.source} loads its own weights, and no file holds them for another function. "
                "Pass source=HubFile(...), Url(...) or LocalFile(...)."
            )
        path, self.revision = fetch(self.source, self.model_name, self.gated)
        model = _skeleton(create)
        tensors = read_checkpoint(path)
        what = f"{self.model_name}: {path.name} of {self.source}"
        if adapt is not None:
            tensors = convert(model, tensors, adapt, what)
        check_fit(model, tensors, what)
        # `assign` keeps the file's memory-mapped tensors: no second copy of a giant's weights.
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=True, assign=True
        )
        return model


def _skeleton(create: Callable[[], nn.Module]) -> nn.Module:
    """Return the module without storage where that is safe: initialising a giant only to overwrite it takes long.

    Buffers computed in a constructor would be lost, so a module that has any is created for real.
    """
    with torch.device("meta"):
        model = create()
    return create() if any(True for _ in model.buffers()) else model


def read_checkpoint(path: Path) -> Tensors:
    """Return the tensors of a `.safetensors` file or a PyTorch checkpoint; code in a pickle is never executed."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} is not a checkpoint that can be read safely ({_told(error)}). Only tensors are "
            "loaded, never code. If the file is whole (delete it and try again), ask its publisher for safetensors."
        ) from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path.name} holds a {type(loaded).__name__}, not a state dict of tensors.")
    return loaded


def _told(error: Exception) -> str:
    # torch's own first line advises to run the code in the file: quote what it met there instead.
    if isinstance(error, UnpicklingError):
        found = re.search(r"GLOBAL \S+|Unsupported [a-z]+ \d+", str(error))
        return f"pickle with {found[0]}" if found else "no pickle of tensors"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def convert(model: nn.Module, tensors: Tensors, adapt: Adapt, what: str) -> Tensors:
    """Return `adapt(tensors, model)`; a checkpoint that it cannot even read is of another model."""
    names = _listing("tensors", sorted(map(str, tensors)))
    try:
        return adapt(tensors, model)
    except BackboneError:
        raise
    except Exception as error:  # whatever a converter trips over in a foreign file
        raise WeightsError(
            f"{what} cannot be converted ({type(error).__name__}: {error}). It holds {''.join(names) or 'nothing'}. "
            "Nothing was loaded. Is it the checkpoint of another model or release?"
        ) from error


def check_fit(model: nn.Module, tensors: Tensors, what: str) -> None:
    """Raise unless `tensors` are exactly the model's, by name and shape; nothing is ever loaded in part."""
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problems = [
        *_listing("missing", sorted(expected.keys() - tensors.keys())),
        *_listing("unexpected", sorted(tensors.keys() - expected.keys())),
        *_listing(
            "of another shape",
            [
                f"{k} {tuple(tensors[k].shape)} instead of {shape}"
                for k, shape in expected.items()
                if k in tensors and tuple(tensors[k].shape) != shape
            ],
        ),
    ]
    if problems:
        raise WeightsError(
            f"{what} does not fit the architecture: {'; '.join(problems)}. Nothing was loaded. "
            "Is it the checkpoint of another model or release?"
        )


def _listing(problem: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{len(names)} {problem} ({', '.join(names[:5])}{more})"]
