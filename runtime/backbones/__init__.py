"""Every built-in backbone: one decorated function each, one file per publisher. Importing this registers them."""

from runtime.backbones import (
    bioptimus,
    histai,
    hkust,
    kaiko,
    lunit,
    mahmood,
    meta,
    owkin,
    paige,
    prov_gigapath,
    universal,
)

__all__ = [
    "bioptimus",
    "histai",
    "hkust",
    "kaiko",
    "lunit",
    "mahmood",
    "meta",
    "owkin",
    "paige",
    "prov_gigapath",
    "universal",
]
