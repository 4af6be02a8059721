"""Encoders of radiology volumes: assembling MONAI's Swin UNETR and SegResNet; both, too, without published weights.

Input is [B, 1, D, H, W]. eva's configurations prepare CT as follows: 1.5 mm spacing, Hounsfield units from -175 to 250
scaled to [0, 1] (clipped), pieces of 96 x 96 x 96 voxels. Sides need not be multiples of anything: the encoders pad an
odd side with zeros, as they do in eva; it is the decoders of Swin UNETR, left out here, that want multiples of 32.
"""

import math
from typing import TYPE_CHECKING, Any

from runtime.errors import OptionError
from runtime.facts import LibraryInit, Preprocessing
from runtime.out_indices import OutIndices, canonical
from runtime.registry import register_model

if TYPE_CHECKING:
    from torch import nn

    from runtime.swin_unetr import Sides
    from runtime.weights import Adapt, Weights

VOLUME = Preprocessing(size=96, channels=1, spatial_dims=3)
SWIN_DEPTH, SEGRESNET_DEPTH = 6, 4
EMBEDDINGS = {"multiscale": (0, 1, 2, 3, 5), "head": (5,)}


@register_model(
    "radiology/swin_unetr_encoder",
    preprocessing=VOLUME,
    source=LibraryInit(),
    depth=SWIN_DEPTH,
    extra="radiology",
)
def swin_unetr_encoder(
    weights: Any, out_indices: Any = None, image_size: Any = 96, embeddings_type: str = "multiscale"
) -> Any:
    """Swin UNETR V2's encoder as MONAI initialises it, from a fixed seed: [B, 1152], or [B, 768] of the last map.

    `embeddings_type` is `"multiscale"` (the means of maps 0, 1, 2, 3 and 5) or `"head"` (of map 5 alone).
    """
    return swin_unetr(weights, out_indices, image_size, feature_size=48, use_v2=True, embeddings_type=embeddings_type)


@register_model(
    "radiology/segresnet_encoder",
    aliases=("segresnet_encoder",),
    preprocessing=VOLUME,
    source=LibraryInit(),
    depth=SEGRESNET_DEPTH,
    extra="radiology",
)
def segresnet_encoder(weights: Any, out_indices: Any = None, image_size: Any = 96) -> Any:
    """SegResNet's encoder as MONAI initialises it, from a fixed seed: [B, 240]."""
    return segresnet(weights, out_indices, image_size)


def swin_unetr(
    weights: "Weights",
    out_indices: OutIndices,
    image_size: Any,
    *,
    feature_size: int,
    use_v2: bool,
    embeddings_type: str = "multiscale",
    adapt: "Adapt | None" = None,
) -> "nn.Module":
    """Return Swin UNETR's encoder as an embedding, [B, 24 x feature_size], or as feature maps.

    Raises:
        OptionError: The volume is too small, or `embeddings_type` unknown or given for feature maps.
        OutIndicesError: See `runtime.out_indices`.
    """
    from runtime.swin_unetr import SwinUNETREncoder

    volume = sides(image_size)
    if math.prod(math.ceil(side / 32) for side in volume) < 2:
        raise OptionError(
            f"image_size={image_size!r}: of a volume this small the deepest map is a single voxel, which instance "
            "norm cannot take. One side must be larger than 32 voxels."
        )
    pooled = _pooled(embeddings_type, out_indices)
    encoder = weights.construct(lambda: SwinUNETREncoder(feature_size, volume, use_v2=use_v2), adapt)
    return _with_outputs(encoder, out_indices, SWIN_DEPTH, pooled)


def segresnet(
    weights: "Weights",
    out_indices: OutIndices,
    image_size: Any,
    *,
    filters: int = 16,
    adapt: "Adapt | None" = None,
) -> "nn.Module":
    """Return SegResNet's encoder as an embedding, [B, 15 x filters] from all its maps, or as feature maps.

    Raises:
        OptionError: The size is none of a volume.
        OutIndicesError: See `runtime.out_indices`.
    """
    from runtime.volumes import SegResNetEncoder

    sides(image_size)  # convolutions take any
    encoder = weights.construct(lambda: SegResNetEncoder(filters), adapt)
    return _with_outputs(encoder, out_indices, SEGRESNET_DEPTH, tuple(range(SEGRESNET_DEPTH)))


def sides(image_size: Any) -> "Sides":
    """Return depth, height and width in voxels.

    Raises:
        OptionError: It is neither an int nor three of them.
    """
    each = (image_size,) * 3 if isinstance(image_size, int) else image_size
    if not isinstance(each, tuple | list) or len(each) != 3 or any(type(s) is not int or s < 1 for s in each):
        raise OptionError(
            f"image_size={image_size!r} must be voxels: an int, or depth, height and width. "
            "These encoders are built for one volume size, never a dynamic one."
        )
    depth, height, width = each
    return depth, height, width


def _pooled(embeddings_type: str, out_indices: OutIndices) -> tuple[int, ...]:
    if embeddings_type not in EMBEDDINGS:
        raise OptionError(f"embeddings_type={embeddings_type!r} is none of {', '.join(map(repr, EMBEDDINGS))}.")
    if out_indices is not None and embeddings_type != "multiscale":
        raise OptionError(
            f"embeddings_type={embeddings_type!r} chooses an embedding and means nothing for feature maps: "
            "leave out embeddings_type or out_indices."
        )
    return EMBEDDINGS[embeddings_type]


def _with_outputs(encoder: "nn.Module", out_indices: OutIndices, depth: int, pooled: tuple[int, ...]) -> "nn.Module":
    from runtime.volumes import VolumeEmbedding, VolumeMaps

    chosen = canonical(out_indices, depth)
    if chosen is None:
        return VolumeEmbedding(encoder, pooled)
    return VolumeMaps(encoder, [index + depth for index in chosen])
