"""Every built-in backbone: one decorated function each, one file per publisher. Importing this registers them."""

from runtime.backbones import (
    bioptimus,
    histai,
    hkust,
    kaiko,
    lunit,
    mahmood,
    meta,
    monai_encoders,
    owkin,
    paige,
    prov_gigapath,
    suprem,
    universal,
    universal_model,
    voco,
)

__all__ = [
    "bioptimus",
    "histai",
    "hkust",
    "kaiko",
    "lunit",
    "mahmood",
    "meta",
    "monai_encoders",
    "owkin",
    "paige",
    "prov_gigapath",
    "suprem",
    "universal",
    "universal_model",
    "voco",
]
