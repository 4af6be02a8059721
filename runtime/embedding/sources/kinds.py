"""Which kind of input files are, by their names: a pure decision with its reasons. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runtime.errors import InputError

Kind = Literal["images", "parquet", "tar", "npy", "slides"]

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
TARS = (".tar", ".tar.gz", ".tgz")
# What OpenSlide reads and nothing else is called; TIFF is decided by `mpp`.
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")
_TIFFS = (".tif", ".tiff")
_BY_KIND: dict[Kind, tuple[str, ...]] = {
    "images": IMAGES,
    "parquet": (".parquet", ".pq"),
    "tar": (".tar", ".tgz"),
    "npy": (".npy",),
    "slides": SLIDES,
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _BY_KIND.items() for suffix in suffixes}
UNDERSTOOD = (
    f"images ({', '.join(IMAGES)}), Parquet files, WebDataset tar files ({', '.join(TARS)}), an .npy array "
    f"[N, H, W, 3] of uint8, or slides ({', '.join(SLIDES)}, and TIFF where mpp is given)"
)


@dataclass(frozen=True)
class Found:
    """What lies at a place: how many files of each kind that is understood, and of each suffix that is not."""

    place: str
    kinds: Mapping[Kind, int]
    others: Mapping[str, int]


def kind_of(name: str, slides: bool) -> Kind | None:
    """Return the kind of the file called `name`, TIFF being slides where `slides`; `None` when it is not understood."""
    lower = name.lower()
    if slides and lower.endswith(_TIFFS):
        return "slides"
    if lower.endswith(".tar.gz"):
        return "tar"
    return _BY_SUFFIX.get(suffix_of(lower))


def suffix_of(name: str) -> str:
    """Return what `name` ends with, dot included; empty where it has none."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot else ""


def choose(found: Found) -> Kind:
    """Return the one kind that was found.

    Raises:
        InputError: None was, or several.
    """
    if len(found.kinds) == 1:
        return next(iter(found.kinds))
    if not found.kinds:
        raise InputError(
            f"{found.place} holds {_others(found.others)}: nothing that can be embedded. Understood are {UNDERSTOOD}."
        )
    raise InputError(
        f"{found.place} holds several kinds of input: {_list(found.kinds)}. Name one of them: "
        f"a folder, a file, or a glob such as '{found.place}/**/*{_BY_KIND[min(found.kinds)][0]}'."
    )


def _list(counts: Mapping[Kind, int]) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))


def _others(counts: Mapping[str, int]) -> str:
    if not counts:
        return "no file"
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count} of {suffix or 'no suffix'}" for suffix, count in most[:5])
    return f"files ({named}{', ...' if len(most) > 5 else ''})"
