"""Every built-in backbone: one decorated function each, one file per publisher. Importing this registers them."""

from runtime.backbones import (
    bioptimus,
    hkust,
    hms,
    kaiko,
    lunit,
    mahmood,
    nirschl,
    paige,
    prov_gigapath,
    sichuan,
    sjtu,
    sophont,
    stanford,
    torchvision,
    universal,
    vinid,
)

__all__ = [
    "bioptimus",
    "hkust",
    "hms",
    "kaiko",
    "lunit",
    "mahmood",
    "nirschl",
    "paige",
    "prov_gigapath",
    "sichuan",
    "sjtu",
    "sophont",
    "stanford",
    "torchvision",
    "universal",
    "vinid",
]
