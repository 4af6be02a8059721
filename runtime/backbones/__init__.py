"""Every built-in backbone: one decorated function each, one file per publisher. Importing this registers them."""

from runtime.backbones import (
    bioptimus,
    hkust,
    kaiko,
    lunit,
    mahmood,
    monai_encoders,
    paige,
    prov_gigapath,
    suprem,
    universal,
    universal_model,
    voco,
)

__all__ = [
    "bioptimus",
    "hkust",
    "kaiko",
    "lunit",
    "mahmood",
    "monai_encoders",
    "paige",
    "prov_gigapath",
    "suprem",
    "universal",
    "universal_model",
    "voco",
]
