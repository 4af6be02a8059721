"""Any timm model as a backbone: timm builds it, our weights fill it, timm's `features_only` cuts it. timm on call."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runtime.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from runtime.backbones.timm_family import TimmBuilder
    from runtime.backbones.timm_vit import ImageSize
    from runtime.out_indices import OutIndices
    from runtime.weights import Weights

Filter = Callable[..., dict[str, Any]]
Fill = Callable[[Any, Filter | None, bool], None]

_patching = threading.Lock()


def build(
    what: "TimmBuilder", weights: "Weights", out_indices: "OutIndices", image_size: "ImageSize | None"
) -> "nn.Module":
    """Return timm's model as an embedding [B, D], or as feature maps [B, C, h, w] when `out_indices` is given.

    The embedding is what timm gives with `num_classes=0`; maps are those of `features_only`, permuted to NCHW, in
    ascending order. Weights are in place before timm removes what the maps do not need.

    Args:
        what: The model.
        weights: Fills the full model.
        out_indices: See `runtime.out_indices`.
        image_size: Pixels; `"dynamic"` where timm has `dynamic_img_size`; `None` for the weights' own size.

    Raises:
        OptionError: The architecture cannot take images of this size.
        WeightsError: The weights cannot be had, or do not fit.
    """
    from runtime.modules import TimmEmbedding, TimmMaps

    size = (image_size, image_size) if isinstance(image_size, int) else image_size or what.native
    outputs: dict[str, Any] = {"num_classes": 0}
    if out_indices is not None:
        outputs = {"features_only": True, "out_indices": _absolute(out_indices, what.depth)}
    model = _create_sized(what, weights, size, outputs)
    module = TimmEmbedding(model) if out_indices is None else TimmMaps(model, outputs["out_indices"])
    if size != what.native:
        _require_fit(what, module, size)
    return module


def _absolute(out_indices: "OutIndices", depth: int) -> tuple[int, ...]:
    from runtime.out_indices import canonical

    chosen = canonical(out_indices, depth)
    assert chosen is not None
    return tuple(index + depth for index in chosen)


def _create_sized(what: "TimmBuilder", weights: "Weights", size: Any, outputs: dict[str, Any]) -> "nn.Module":
    """Return the filled model for images of `size`: by its own method, by a constructor argument, or as it is."""
    from runtime.weights import LoudWeights

    baked = size != "dynamic" and _resamples(what.model)
    outputs = {**outputs, "dynamic_img_size": False} if baked else outputs

    def fill(model: Any, filter_fn: Filter | None, strict: bool) -> None:
        weights.construct(
            lambda: model, lambda tensors, module: adapted(what.model, tensors, module, filter_fn, strict)
        )
        if isinstance(weights, LoudWeights):
            _settle(what, model, what.native if size == "dynamic" or hasattr(model, "set_input_size") else size)
        if size != "dynamic" and (size != what.native or baked) and hasattr(model, "set_input_size"):
            _set_input_size(what, model, size)

    if size == what.native:
        return _create(what.model, fill, outputs)
    try:
        if size == "dynamic":
            return _create(what.model, fill, {**outputs, "dynamic_img_size": True})
        if _resizes_itself(what.model):
            return _create(what.model, fill, outputs)
        return _create(what.model, fill, {**outputs, "img_size": size})
    except TypeError as error:
        if size == "dynamic":
            raise OptionError(
                f"image_size='dynamic': timm's {what.model} has no dynamic_img_size. Give the size in pixels, "
                "one artifact each."
            ) from error
        if "img_size" not in str(error):
            raise
    return _create(what.model, fill, outputs)  # convolutional: it takes what its strides allow


def _settle(what: "TimmBuilder", model: Any, size: tuple[int, int]) -> None:
    """Bring random batch statistics to the scale of the strongest images that verification tries: none explodes."""
    import torch

    from runtime.loud import settle

    try:
        settle(model, 20 * torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0)).sign())
    except Exception as error:  # whatever the architecture's layers raise
        if size == what.native:
            raise
        raise OptionError(_refusal(what, size, error)) from error


def _resizes_itself(name: str) -> bool:
    import timm
    import torch

    with torch.device("meta"):
        return hasattr(timm.create_model(name, num_classes=0), "set_input_size")


def _resamples(name: str) -> bool:
    """Return whether timm's model resamples its position embedding at every call, unless it is told not to."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return bool(getattr(model, "dynamic_img_size", False)) and getattr(model, "pos_embed", None) is not None


def _set_input_size(what: "TimmBuilder", model: Any, size: tuple[int, int]) -> None:
    import torch

    try:
        with torch.no_grad():
            model.set_input_size(img_size=tuple(size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise OptionError(_refusal(what, size, error)) from error


def _refusal(what: "TimmBuilder", size: Any, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    own = what.native[0] if what.native[0] == what.native[1] else what.native
    return f"image_size={size!r}: timm's {what.model} does not take it: {reason}. Its own size is {own}."


def _require_fit(what: "TimmBuilder", module: "nn.Module", size: Any) -> None:
    import torch

    height, width = what.native if size == "dynamic" else size
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, height, width))
    except Exception as error:  # whatever the architecture's layers raise
        raise OptionError(_refusal(what, size, error)) from error


def _create(name: str, fill: Fill, arguments: dict[str, Any]) -> "nn.Module":
    """Return timm's model; `fill` is called with the full model, before timm makes a feature extractor of it."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]), _loading_by(fill):
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    return model


@contextmanager
def _loading_by(fill: Fill) -> Iterator[None]:
    """Let `fill` load the weights of the models that timm builds, in the place where timm loads its own.

    timm has no other way to fill a model before `features_only` prunes it, nor one to learn which filter belongs to an
    architecture's checkpoints.
    """
    from timm.models import _builder

    def load(model: Any, *_: Any, filter_fn: Filter | None = None, strict: bool = True, **__: Any) -> None:
        fill(model, filter_fn, strict)

    with _patching:
        own, _builder.load_pretrained = _builder.load_pretrained, load
        try:
            yield
        finally:
            _builder.load_pretrained = own


def adapted(name: str, tensors: dict[str, Any], model: Any, filter_fn: Filter | None, strict: bool) -> dict[str, Any]:
    """Return a published state dict under the keys of `model`, by timm's own filter for the architecture.

    Left out is what belongs to the full model alone (its classifier, layers that feature maps do not need); of an
    architecture that timm itself loads loosely (an auxiliary classifier), all that the model does not know.
    """
    import torch

    tensors = _unwrapped(tensors)
    if filter_fn is not None:
        try:
            tensors = filter_fn(tensors, model)
        except TypeError:
            tensors = filter_fn(tensors)  # of one argument
    own = model.state_dict()
    surplus = tensors.keys() - own.keys()
    if surplus and strict:
        surplus &= _all_keys(name)
    kept = {key: value for key, value in tensors.items() if key not in surplus}
    # Old checkpoints lack the counters of batch normalisation, which inference does not read.
    counters = {key for key in own.keys() - kept.keys() if key.endswith("num_batches_tracked")}
    return kept | {key: torch.zeros_like(own[key], device="cpu") for key in counters}


def _unwrapped(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of a training checkpoint, averaged weights first, as timm's own loading does."""
    kept = (checkpoint.get(key) for key in ("state_dict_ema", "model_ema", "state_dict", "model"))
    tensors = next((value for value in kept if isinstance(value, dict) and value), checkpoint)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _all_keys(name: str) -> set[str]:
    import timm
    import torch

    with torch.device("meta"):
        return set(timm.create_model(name).state_dict())
