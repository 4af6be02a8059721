"""Building a backbone as eager PyTorch: the reference that every artifact must equal."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.errors import DependencyError, OptionError, RegistrationError, WeightsError
from runtime.facts import LibraryInit
from runtime.loud import draw_loud
from runtime.request import Request
from runtime.requirements import missing_for_eager
from runtime.weights import LibraryWeights, LoudWeights, NoWeights, PublishedWeights, Weights


@dataclass(frozen=True)
class EagerModel:
    """A built module in eval mode, and the revision of its published weights (if it has any)."""

    module: nn.Module
    revision: str | None


def build(request: Request) -> EagerModel:
    """Return the backbone that `request` describes, on the CPU, in eval mode.

    Raises:
        DependencyError: A package that the backbone needs is not installed.
        WeightsError: The weights cannot be had or do not fit.
        OutIndicesError: The backbone has no such feature maps.
        RegistrationError: The registered function did not return an `nn.Module`.
    """
    weights = _weights(request) if "weights" in request.spec.parameters else None
    # A backbone served from its artifact draws nothing: what the caller draws next must not depend on what serves.
    with torch.random.fork_rng(devices=[]):
        module = _call(request, weights)
    if weights is None and request.weights == "random":
        draw_loud(module, request.seed)
    return EagerModel(module.eval(), getattr(weights, "revision", None))


def count_parameters(request: Request) -> int:
    """Return how many parameters the backbone has, without loading or drawing its weights.

    Raises:
        BackboneError: As `build`, but for the weights.
    """
    weights = NoWeights() if "weights" in request.spec.parameters else None
    return sum(parameter.numel() for parameter in _call(request, weights).parameters())


def _call(request: Request, weights: Weights | None) -> nn.Module:
    spec = request.spec
    if hint := missing_for_eager(spec):
        raise DependencyError(f"{spec.name!r} as eager torch: {hint}")
    arguments = dict(request.options)
    if request.out_indices is not None:
        arguments["out_indices"] = request.out_indices if spec.depth is None else _plain(request)
    arguments |= _image_size(request)
    if weights is not None:
        arguments["weights"] = weights
    module: Any = spec.build(**arguments)
    if not isinstance(module, nn.Module):
        raise RegistrationError(
            f"{spec.name!r}: {spec.build.__module__}.{spec.build.__qualname__} returned a {type(module).__name__}; "
            "a registered function must return a torch.nn.Module."
        )
    return module


def _plain(request: Request) -> int | tuple[int, ...]:
    indices = request.canonical
    assert indices is not None
    return indices


def _image_size(request: Request) -> dict[str, Any]:
    if "image_size" in request.spec.parameters:
        return {"image_size": request.size}
    declared = request.spec.preprocessing.size
    if request.size != (declared,) * request.spec.preprocessing.spatial_dims:
        raise OptionError(
            f"image_size={request.image_size!r}: {request.spec.name!r} takes {declared} pixels only; "
            "its function has no parameter image_size."
        )
    return {}


def _weights(request: Request) -> Weights:
    if request.weights.startswith("checkpoint") and request.checkpoint_path is None:
        raise WeightsError(
            f"{request.spec.name!r} with weights={request.weights!r} can only be served from its artifact: as eager "
            "torch it needs the file itself, checkpoint_path=FILE."
        )
    source = request.source
    if isinstance(source, LibraryInit):
        return LibraryWeights(source.seed)
    if request.weights == "random":
        return LoudWeights(request.seed)
    if source is None:
        raise RegistrationError(
            f"{request.spec.name!r}: its function asks for weights, but no source is declared. "
            "Pass source= to register_model, or drop the parameter and load them in the function."
        )
    return PublishedWeights(source, request.spec.name, request.spec.gated)
