"""Assembling a timm Vision Transformer: architecture, weights, image size, outputs. torch is imported on call."""

from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import OptionError, OutIndicesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from runtime.out_indices import OutIndices
    from runtime.weights import Adapt, Weights

ImageSize = int | tuple[int, int] | Literal["dynamic"]


def timm_vit(
    architecture: str,
    weights: "Weights",
    out_indices: "OutIndices",
    image_size: ImageSize,
    *,
    include_patch_tokens: bool = False,
    adapt: "Adapt | None" = None,
    head: "Callable[[Any], nn.Module] | None" = None,
    **kwargs: Any,
) -> "nn.Module":
    """Return timm's `architecture` as an embedding, or as feature maps when `out_indices` is given.

    A fixed `image_size` bakes the position embedding for that size (timm's own resampling, done once); `"dynamic"`
    resamples it in every forward, for any size that is a multiple of the patch.

    Args:
        architecture: timm model name.
        weights: Fills the full model before anything is removed from it.
        out_indices: See `runtime.out_indices`.
        image_size: Pixels, or `"dynamic"`.
        include_patch_tokens: Append the mean patch token to the CLS token.
        adapt: Maps the published state dict to timm's keys, before timm's own filter.
        head: Makes the publisher's projection for the trunk; it takes the place of timm's `head`, behind the pooling.
        **kwargs: Further arguments of `timm.create_model`.
    """
    from runtime.modules import Embedding, FeatureMaps

    if out_indices is not None and include_patch_tokens:
        raise OptionError(
            "include_patch_tokens=True appends to the embedding and means nothing for feature maps: "
            "leave out include_patch_tokens or out_indices."
        )
    model = weights.construct(lambda: _create(architecture, image_size, head, kwargs), _then_timm(adapt, head))
    if image_size != "dynamic":
        _set_image_size(model, image_size)
    if out_indices is None:
        return Embedding(model, include_patch_tokens)
    try:
        return FeatureMaps(model, out_indices if isinstance(out_indices, int) else tuple(out_indices))
    except AssertionError as error:
        raise OutIndicesError(f"out_indices={out_indices!r}: {error}") from error


def _create(
    architecture: str, image_size: ImageSize, head: "Callable[[Any], nn.Module] | None", kwargs: dict[str, Any]
) -> "nn.Module":
    import timm

    arguments = {"num_classes": 0, "dynamic_img_size": image_size == "dynamic", **kwargs}
    model: nn.Module = timm.create_model(architecture, pretrained=False, **arguments)
    if head is not None:
        model.head = head(model)
    return model


def _set_image_size(model: Any, image_size: int | tuple[int, int]) -> None:
    import torch

    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    with torch.no_grad():
        model.set_input_size(img_size=size)


def _then_timm(adapt: "Adapt | None", head: "Callable[[Any], nn.Module] | None") -> "Adapt":
    """Return `adapt` followed by the filter that timm itself applies to Vision Transformer checkpoints."""

    def both(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
        from timm.models.vision_transformer import checkpoint_filter_fn

        adapted = adapt(tensors, model) if adapt is not None else tensors
        stem = _patch_embedding(adapted)
        filtered: dict[str, Any] = checkpoint_filter_fn(adapted, model)
        if head is not None:
            return filtered | stem
        # Published classifiers are not part of a backbone.
        return {key: value for key, value in filtered.items() if not key.startswith("head.")} | stem

    return both


def _patch_embedding(checkpoint: dict[str, Any]) -> dict[str, Any]:
    # timm would resample patches of 8 pixels to 16 and so make a ViT-S/8 pass for a ViT-S/16.
    tensors = checkpoint.get("model", checkpoint)
    stem = tensors.get("state_dict", tensors).get("patch_embed.proj.weight")
    return {} if stem is None or stem.ndim != 4 else {"patch_embed.proj.weight": stem}


def fuse_qkv(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict with each `q_proj`, `k_proj`, `v_proj` as the one `qkv` that timm has."""
    import torch

    fused = {}
    for key, value in tensors.items():
        if ".q_proj." in key:
            parts = [tensors[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            fused[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            fused[key] = value
    return fused
