"""Whole slides, cut into tiles by OpenSlide."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import openslide
from PIL import Image

from runtime.embedding.sources.damage import check_opens, check_some_left
from runtime.embedding.sources.grid import Cut, Grid, plan_grid
from runtime.embedding.sources.listing import Listing
from runtime.embedding.sources.tissue import on_background, tiles_with_tissue
from runtime.embedding.tile import Piece, Pixels, Tile
from runtime.errors import InputError, UnreadableImageError
from runtime.machine import cpu_count


@dataclass(frozen=True)
class Slides:
    """Slides, one piece each; how many tiles have tissue is found out when a slide is read.

    Attributes:
        root: The folder that the names are relative to.
        names: The slides.
        sizes: Of each file, in words.
        cut: How they are cut.
        damaged: Those that OpenSlide does not read, and why. Each is one tile, unreadable and called as the file.
        ignored: How many other files lay beside them, by suffix.
    """

    coordinates: ClassVar = ("x", "y", "size", "mpp")

    root: Path
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    cut: Cut
    damaged: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name."""
        return [Piece(name, None, size) for name, size in zip(self.names, self.sizes, strict=True)]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the tiles with tissue row by row, read by as many threads as there are CPUs."""
        path, reason = self.root / piece.name, self.damaged.get(piece.name)
        if reason is None:
            try:
                with openslide.OpenSlide(path) as slide:
                    grid = _grid(slide, self.cut)
                    corners = [grid.corner(*position) for position in tiles_with_tissue(slide, grid)[start:]]
                    read = _Reader(path, slide, grid, self.cut.size)
                    yield from _ahead(lambda corner: self._tile(piece.name, corner, grid, read), corners)
            except openslide.OpenSlideError as error:  # of its tissue: regions that are read have their own
                check_opens(path)
                reason = f"no tissue can be looked for in the slide: {error}"
        if reason is not None:
            # With coordinates, as every tile of a slide has them.
            where = {"x": 0, "y": 0, "size": 0, "mpp": self.cut.mpp}
            yield Tile(piece.name, UnreadableImageError(reason), where)

    def fingerprint(self) -> str:
        """Return a hash of the names and of how the slides are cut."""
        content = repr((self.names, self.cut))
        return f"slides-{hashlib.sha256(content.encode()).hexdigest()}"

    def _tile(self, name: str, corner: tuple[int, int], grid: Grid, read: "_Reader") -> Tile:
        x, y = corner
        coordinates = {"x": x, "y": y, "size": round(grid.step), "mpp": self.cut.mpp}
        return Tile(f"{name}/{x}_{y}", read(corner), coordinates)


def read_slides(listing: Listing, cut: Cut) -> Slides:
    """Return the slides of `listing`, each seen to have the resolution where it opens at all.

    Raises:
        InputError: Slides that do not say their resolution, or are too coarse; or OpenSlide reads none.
    """
    names = listing.names.to_pylist()
    wrong, damaged = {}, {}
    for name in names:
        try:
            _look(listing.root / name, cut)
        except InputError as error:
            wrong[name] = str(error)
        except openslide.OpenSlideError as error:
            check_opens(listing.root / name)
            damaged[name] = f"is no slide that OpenSlide reads: {error}"
    if wrong:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(wrong.items())[:3])
        raise InputError(f"{len(wrong)} of {len(names)} slides in {listing.root} cannot be cut. {some}.")
    check_some_left(listing.root, names, damaged)
    return Slides(listing.root, tuple(names), listing.sizes(), cut, damaged, listing.ignored)


def _look(path: Path, cut: Cut) -> None:
    with openslide.OpenSlide(path) as slide:
        _grid(slide, cut)


def _grid(slide: openslide.OpenSlide, cut: Cut) -> Grid:
    return plan_grid(cut, slide.properties, slide.dimensions, slide.level_downsamples)


@dataclass(frozen=True)
class _Reader:
    """Reads regions of one slide, in several threads."""

    path: Path
    slide: openslide.OpenSlide
    grid: Grid
    size: int

    def __call__(self, corner: tuple[int, int]) -> Pixels | UnreadableImageError:
        """Return a tile's pixels, or why it has none."""
        try:
            return self._read(self.slide, corner)
        except openslide.OpenSlideError:
            # After an error a handle gives nothing more, in no thread: this region may not be the damaged one.
            pass
        try:
            with openslide.OpenSlide(self.path) as own:
                return self._read(own, corner)
        except openslide.OpenSlideError as error:
            return UnreadableImageError(f"the slide is damaged there: {error}")

    def _read(self, slide: openslide.OpenSlide, corner: tuple[int, int]) -> Pixels:
        region = slide.read_region(corner, self.grid.level, (self.grid.pixels, self.grid.pixels))
        colour = f"#{slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, 'ffffff')}"
        tile = on_background(region, colour).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(tile)


def _ahead(read: Callable[[tuple[int, int]], Tile], corners: Iterable[tuple[int, int]]) -> Iterator[Tile]:
    """Yield what `read` returns in order, a few being read ahead."""
    threads = cpu_count()
    waiting: deque[Future[Tile]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="slide") as pool:
        for corner in corners:
            waiting.append(pool.submit(read, corner))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
