"""Where images come from: a folder, Parquet, WebDataset tar files, an array, whole slides. `open_source` decides."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runtime.embedding.sources.kinds import Kind
from runtime.embedding.tile import Piece, Tile
from runtime.errors import DependencyError, InputError

if TYPE_CHECKING:
    from runtime.embedding.sources.listing import Listing
    from runtime.embedding.sources.slides import Slides


# Width and height of a slide's tile in pixels, where None says that nothing was asked for: see `_check_fit`.
TILE_SIZE = 224
_FITTING: dict[Kind, tuple[str, ...]] = {
    "parquet": ("image_column", "id_column"),
    "tar": ("image_column",),
    "slides": ("tile_size", "mpp", "slide_mpp"),
}


class Source(Protocol):
    """An input that was looked through: its parts, in a fixed order. Can be pickled, and read by several threads.

    It may also have `ignored` and `coordinates`: see `HasIgnored` and `HasCoordinates`.
    """

    def pieces(self) -> Sequence[Piece]:
        """Return the parts of the input, in the same order on every run."""

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the tiles of `piece` in order, from tile number `start` on.

        Raises:
            InputError: The file cannot be read on: it is damaged, or changed since it was listed.
        """

    def fingerprint(self) -> str:
        """Return what changes with the list of pieces and what is read of them: names, columns, how slides are cut.

        What a piece holds is not in it, but in the piece's stamp: then one can be mended, and its rows made again.
        """


# Members of a protocol cannot be optional: what a source of one's own need not have is in protocols of its own.
@runtime_checkable
class HasIgnored(Protocol):
    """A source that lies among other files."""

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many files of each suffix lie beside what is read, and are left alone."""


@runtime_checkable
class HasCoordinates(Protocol):
    """A source of tiles that were cut from something larger."""

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of what tells where a tile lies: the keys of every tile's `coordinates`, columns of the output."""


def ignored(source: Source) -> dict[str, int]:
    """Return how many files of each suffix lay beside what is read; none of a source that does not tell."""
    return dict(source.ignored) if isinstance(source, HasIgnored) else {}


def coordinates(source: Source) -> tuple[str, ...]:
    """Return the names of what tells where every tile lies; none of a source that does not tell."""
    return tuple(source.coordinates) if isinstance(source, HasCoordinates) else ()


def open_source(
    path: str | Path,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    tile_size: int | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
) -> Source:
    """Return the images at `path`, by what lies there.

    Args:
        path: A file, a folder, a glob such as `tiles/**/*.png`, or a range as in `shard-{000..010}.tar`.
        image_column: Of Parquet: the column of images (bytes, or structs of bytes and path) or of paths. Of tar files:
            the extension of the image, such as `input.png`. Default: what has a usual name or type.
        id_column: Of Parquet; `none` numbers the rows. Default: a column with a usual name such as `id`, else numbers.
        tile_size: Of slides: width and height of a tile in pixels; default 224.
        mpp: Of slides: microns per pixel of a tile. TIFF files are slides where it is given, images where not.
        slide_mpp: Of slides that do not say: microns per pixel at full resolution.

    Raises:
        InputError: Nothing there, nothing that is understood, several kinds at once, a damaged file, no such column,
            duplicate ids, an option that does not fit.
        DependencyError: A package is missing that reads this kind.
    """
    _check_options(tile_size, mpp, slide_mpp)
    try:
        from runtime.embedding.sources.folder import Folder
        from runtime.embedding.sources.listing import find_files
        from runtime.embedding.sources.npy import read_npy
        from runtime.embedding.sources.parquet import read_parquet
        from runtime.embedding.sources.webdataset import read_webdataset
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"Reading images needs {error.name}: pip install 'backbone-runtime[embed]'.", name=error.name
        ) from error
    kind, listing = find_files(path, slides=mpp is not None)
    columns = {"image_column": image_column, "id_column": id_column}
    _check_fit(kind, str(path), **columns, tile_size=tile_size, mpp=mpp, slide_mpp=slide_mpp)
    if kind == "images":
        return Folder(listing)
    if kind == "parquet":
        return read_parquet(listing, image_column=image_column, id_column=id_column)
    if kind == "tar":
        return read_webdataset(listing, extension=image_column)
    if kind == "npy":
        return read_npy(listing)
    return _slides(listing, tile_size, mpp, slide_mpp)


def _slides(listing: "Listing", tile_size: int | None, mpp: float | None, slide_mpp: float | None) -> "Slides":
    if mpp is None:
        raise InputError(
            f"{listing.root} holds slides: say how many microns a pixel of a tile is with mpp (--mpp), such as 0.5. "
            "Publishers of pathology backbones state what theirs were trained at."
        )
    try:
        from runtime.embedding.sources.grid import Cut
        from runtime.embedding.sources.slides import read_slides
    except (ImportError, OSError) as error:  # the package, or the library it loads
        raise DependencyError(
            f"Reading slides needs openslide ({error}): pip install 'backbone-runtime[wsi]'."
        ) from error
    return read_slides(listing, Cut(TILE_SIZE if tile_size is None else tile_size, mpp, slide_mpp))


def _check_options(tile_size: int | None, mpp: float | None, slide_mpp: float | None) -> None:
    if tile_size is not None and tile_size < 1:
        raise InputError(f"tile_size={tile_size}: a tile is at least one pixel wide.")
    for name, value in (("mpp", mpp), ("slide_mpp", slide_mpp)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name}={value}: microns per pixel are a number above 0, such as 0.5.")


def _check_fit(kind: Kind, path: str, **options: object) -> None:
    """Refuse options that would do nothing: they were meant for another input."""
    fitting = _FITTING.get(kind, ())
    for name, value in options.items():
        if value is not None and name not in fitting:
            raise InputError(f"{name}={value!r} does not fit {path}, which holds {kind}. Leave it out.")
