"""Every built-in backbone: one decorated function each, one file per publisher. Importing this registers them."""

from runtime.backbones import (
    bioptimus,
    hkust,
    kaiko,
    lunit,
    mahmood,
    paige,
    prov_gigapath,
    timm_family,
    universal,
)

__all__ = ["bioptimus", "hkust", "kaiko", "lunit", "mahmood", "paige", "prov_gigapath", "timm_family", "universal"]
