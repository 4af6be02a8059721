"""What the installed timm says of its own architectures. timm is imported on call."""

from typing import Any

from runtime.backbones.timm_table import Architecture, Tag


def names() -> list[str]:
    """Return the architectures of the installed timm; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def describe(name: str) -> Architecture:
    """Return the facts about timm's architecture `name`, from the model itself on the meta device."""
    import timm
    import torch

    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    tags = _tags(name)
    return Architecture(
        family=timm.models.model_entrypoint(name).__module__.rpartition(".")[2],
        parameters=sum(p.numel() for p in model.parameters()),
        depth=len(model.feature_info),
        patch_size=_patch_size(model, [tag.input_size for tag in tags.values()]),
        tags=tags,
    )


def _tags(name: str) -> dict[str, Tag]:
    import timm

    published = timm.models.get_arch_pretrained_cfgs(name)
    default: Any = timm.get_pretrained_cfg(name)
    first = default.tag or ""
    tags = {first: _tag(default)}
    tags |= {cfg.tag: _tag(cfg) for cfg in published.values() if cfg.tag and cfg.tag != first}
    return tags


def _tag(cfg: Any) -> Tag:
    return Tag(
        input_size=tuple(cfg.input_size[-2:]),
        crop_pct=cfg.crop_pct,
        crop_mode=cfg.crop_mode,
        interpolation=cfg.interpolation,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        licence=cfg.license,
        hub=cfg.hf_hub_id or None,
        url=None if cfg.hf_hub_id else cfg.url or None,
    )


def _patch_size(model: Any, sizes: list[tuple[int, int]]) -> int:
    """Return the patch that image sides must be multiples of; 1 where timm itself takes other sizes."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) or 1
    sides = patch if isinstance(patch, tuple) else (patch, patch)
    fits = sides[0] == sides[1] and all(side % sides[0] == 0 for size in sizes for side in size)
    return int(sides[0]) if fits else 1
