"""Image files: of a folder, a glob, or one alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.embedding.sources.listing import Listing
from runtime.embedding.tile import Piece, Tile

# A piece can be read by a worker of its own, and is listed in one go: neither one file nor a million.
NAMES_PER_PIECE = 10_000


@dataclass(frozen=True)
class Folder:
    """Image files, their ids the paths relative to the folder. Pieces are the sorted names, 10,000 at a time."""

    listing: Listing

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many other files lay beside them, by suffix."""
        return self.listing.ignored

    def pieces(self) -> Sequence[Piece]:
        """Return pieces called 000000, 000001 and so on."""
        starts = range(0, len(self.listing), NAMES_PER_PIECE)
        total = len(self.listing)
        return [Piece(f"{k:06}", min(NAMES_PER_PIECE, total - first)) for k, first in enumerate(starts)]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield paths; that a file is gone or damaged shows when it is decoded."""
        first = int(piece.name) * NAMES_PER_PIECE
        for name in self.listing.names[first + start : first + NAMES_PER_PIECE]:
            text = name.as_py()
            yield Tile(text, self.listing.root / text)

    def fingerprint(self) -> str:
        """Return a hash of the names: what a file holds decides its own row and no other, so that it can be mended."""
        return f"images-{self.listing.digest()}"
