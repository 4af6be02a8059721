"""What `runtime.wrappers` registers: callables that build a module from a usual source, and can be pickled.

torch is imported when one of them is called, never before.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import RegistrationError
from runtime.signatures import resolve, signature

if TYPE_CHECKING:
    from torch import nn

    from runtime.weights import Weights

# Maps the tensors of a checkpoint to the keys of the module beside it.
Adapt = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class FunctionBuilder:
    """Calls the function at a dotted path, and fills its module with a checkpoint when there is one."""

    name: str
    path: str
    arguments: Mapping[str, Any]
    has_source: bool
    adapt: Adapt | None

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's own parameters, but those already given and those of the registry's concern."""
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        free = [
            inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default)
            for p in signature(self.name, self.path).parameters.values()
            if p.kind not in variable and p.name not in (*self.arguments, "weights", "features_only")
        ]
        weights = [inspect.Parameter("weights", inspect.Parameter.KEYWORD_ONLY)] if self.has_source else []
        return inspect.Signature(weights + free)

    def __call__(self, *, weights: "Weights | None" = None, **given: Any) -> "nn.Module":
        """Return what the function returns."""
        create = functools.partial(self._create, given)
        if weights is None:
            return create()
        return weights.construct(created_for_real(create), functools.partial(self._adapt, given))

    def _create(self, given: Mapping[str, Any]) -> "nn.Module":
        arguments = {**self.arguments, **given}
        if "out_indices" in given and "features_only" in signature(self.name, self.path).parameters:
            arguments["features_only"] = True
        return as_module(resolve(self.name, self.path)(**arguments), self.name, self.path)

    def _adapt(self, given: Mapping[str, Any], tensors: Any, module: "nn.Module") -> Any:
        """Return the tensors of `module`; one cut down to feature maps may leave some of the whole model's unused."""
        adapted = (self.adapt or unwrapped)(tensors, module)
        if "out_indices" not in given:
            return adapted
        from runtime.weights import check_fit

        whole = self._create({key: value for key, value in given.items() if key != "out_indices"})
        check_fit(whole, adapted, f"{self.name}: its checkpoint")
        wanted = module.state_dict().keys()
        return {key: tensor for key, tensor in adapted.items() if key in wanted}


@dataclass(frozen=True, eq=False)
class CheckpointBuilder:
    """Builds what another registered function builds, from another checkpoint."""

    build: Callable[..., Any]
    adapt: Adapt | None

    @property
    def __signature__(self) -> inspect.Signature:
        """The parameters of the function behind it."""
        return inspect.signature(self.build)

    def __call__(self, weights: "Weights", **given: Any) -> Any:
        """Return what the function returns."""
        return self.build(weights=_Adapted(weights, self.adapt) if self.adapt else weights, **given)


@dataclass(frozen=True)
class _Adapted:
    """Weights whose tensors pass through `first` before the architecture's own `adapt`."""

    weights: "Weights"
    first: Adapt

    def construct(self, create: "Callable[[], nn.Module]", adapt: Adapt | None = None) -> "nn.Module":
        """Return `create()` with its weights in place."""

        def both(tensors: Any, module: "nn.Module") -> Any:
            renamed = self.first(tensors, module)
            return adapt(renamed, module) if adapt is not None else renamed

        return self.weights.construct(create, both)


def as_module(made: Any, name: str, what: str) -> "nn.Module":
    """Return `made` if it is a module.

    Raises:
        RegistrationError: It is something else.
    """
    from torch import nn

    if not isinstance(made, nn.Module):
        raise RegistrationError(
            f"{name!r}: {what} returned a {type(made).__name__}; a registered function must return a torch.nn.Module."
        )
    return made


def created_for_real(create: "Callable[[], nn.Module]") -> "Callable[[], nn.Module]":
    """Return a function that calls `create` once, off the meta device: foreign code may compute with its tensors."""

    @functools.cache
    def once() -> "nn.Module":
        import torch

        with torch.device("cpu"):
            return create()

    return once


def unwrapped(tensors: Any, module: Any) -> Any:  # noqa: ARG001
    """Return the state dict that training loops keep beside other things, as `state_dict` or `model`."""
    for entry in ("state_dict", "model"):
        if isinstance(tensors.get(entry), Mapping):
            return dict(tensors[entry])
    return tensors
