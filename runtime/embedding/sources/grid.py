"""Where a slide is cut, and at which level it is read: pure arithmetic about what the slide says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import InputError

# Below, TIFF writers left the resolution of a screen or a printer; above, there is no optical microscope.
PLAUSIBLE_MPP = (0.02, 20.0)
# Scanners called 0.25 have up to 0.275; what is coarser has not the details that were asked for.
_COARSER = 1.1
# A level of downsample 4.003 is one of 4.
_ROUNDING = 1.01


@dataclass(frozen=True)
class Cut:
    """How slides are cut.

    Attributes:
        size: Width and height of a tile in its own pixels.
        mpp: Microns per pixel of a tile.
        slide_mpp: Microns per pixel at full resolution, of slides that do not say.
    """

    size: int
    mpp: float
    slide_mpp: float | None = None


@dataclass(frozen=True)
class Grid:
    """Where the tiles of one slide lie.

    Attributes:
        step: Width and height of a tile in pixels of level 0, not a whole number in general.
        level: The one to read.
        pixels: Width and height of a tile at that level.
        origin: Left and top of what was scanned, in pixels of level 0.
        extent: Width and height of what was scanned, in pixels of level 0.
    """

    step: float
    level: int
    pixels: int
    origin: tuple[int, int]
    extent: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of whole tiles; what is left over at the right and the bottom is not read."""
        width, height = self.extent
        return int(height / self.step + 1e-9), int(width / self.step + 1e-9)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return left and top of a tile in pixels of level 0."""
        return self.origin[0] + round(column * self.step), self.origin[1] + round(row * self.step)


def plan_grid(
    cut: Cut, properties: Mapping[str, str], dimensions: tuple[int, int], downsamples: Sequence[float]
) -> Grid:
    """Return the grid of a slide: the lowest resolution is read that is not below what is wanted.

    Raises:
        InputError: The slide does not say its microns per pixel, or has not the resolution that is wanted.
    """
    mpp = _mpp(properties) or cut.slide_mpp
    if mpp is None:
        said = " and ".join(f"{name}={properties[name]}" for name in _MPP if name in properties)
        raise InputError(
            f"it does not say how many microns a pixel is{f' ({said} cannot be)' if said else ''}: "
            "give slide_mpp (--slide-mpp)"
        )
    if mpp > cut.mpp * _COARSER:
        raise InputError(f"it has {mpp:g} microns per pixel, too coarse for tiles of {cut.mpp:g}: ask for mpp={mpp:g}")
    wanted = cut.mpp / mpp
    level = max((k for k, factor in enumerate(downsamples) if factor <= wanted * _ROUNDING), default=0)
    step = cut.size * wanted
    pixels = max(1, round(step / downsamples[level]))
    return Grid(step, level, pixels, *_bounds(properties, dimensions))


_MPP = ("openslide.mpp-x", "openslide.mpp-y")


def _mpp(properties: Mapping[str, str]) -> float | None:
    """Return the mean of what is said for x and y, unless no scanner can have it."""
    try:
        values = [float(properties[name]) for name in _MPP]
    except (KeyError, ValueError):
        return None
    low, high = PLAUSIBLE_MPP
    return sum(values) / 2 if all(low <= value <= high for value in values) else None


def _bounds(properties: Mapping[str, str], dimensions: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what was scanned of a slide whose dimensions are those of the glass; else all of it."""
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return (0, 0), dimensions
    return (x, y), (width, height)
