"""Inputs of the embedding tests: tiles made in memory, in pieces that do what the test needs."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.dataset
from PIL import Image

from runtime import load_model
from runtime.backbone import Backbone
from runtime.embedding.tile import Piece, Tile
from runtime.errors import UnreadableImageError

NAME = "test/tiny_vit"


@dataclass(frozen=True)
class Pieces:
    """A source of tiles drawn from their numbers.

    `counts` are the tiles of each piece; `bad` cannot be read; `coarse` says that only reading tells how many there
    are; at tile `breaks` reading fails, as of a disk that is gone. `read` notes what is opened.
    """

    counts: Mapping[str, int]
    bad: frozenset[str] = frozenset()
    coarse: bool = False
    breaks: str | None = None
    slides: bool = False
    name: str = "made"
    fewer: int = 0
    read: list[str] = field(default_factory=list)

    def pieces(self) -> Sequence[Piece]:
        return [Piece(name, None if self.coarse else count) for name, count in self.counts.items()]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        self.read.append(f"{piece.name} from {start}")
        for number in range(start, self.counts[piece.name] - self.fewer):
            id = f"{piece.name}/{number}"
            if id == self.breaks:
                raise OSError(5, "Input/output error")
            where = {"x": 10 * number, "y": 0, "size": 32, "mpp": 0.5} if self.slides else None
            yield Tile(id, UnreadableImageError("it is empty (0 bytes)") if id in self.bad else pixels(id), where)

    def fingerprint(self) -> str:
        return f"{self.name}-{dict(self.counts)}"

    @property
    def ids(self) -> list[str]:
        """Of all tiles, in order, those that can be read."""
        every = [f"{name}/{number}" for name, count in self.counts.items() for number in range(count)]
        return [id for id in every if id not in self.bad]


def pixels(id: str) -> np.ndarray:
    """Return an image that no other id has."""
    return np.random.default_rng(abs(hash_of(id))).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def hash_of(id: str) -> int:
    return int.from_bytes(id.encode(), "little") % 2**63


def expected(model: Backbone, ids: Sequence[str]) -> np.ndarray:
    """Return the embeddings of tiles, each computed alone."""
    return np.concatenate([model(model.preprocess(pixels(id))) for id in ids])


def tiny(built: Path, **options: object) -> Backbone:
    given = {"backend": "onnx", "weights": "random", "artifacts": built, "on_fallback": "error", "device": "cpu"}
    return load_model(NAME, **(given | options))


def table_of(folder: Path) -> pyarrow.Table:
    """Return the rows of an output folder as any user of pyarrow reads them."""
    return pyarrow.dataset.dataset(folder).to_table()


def embeddings_of(folder: Path) -> np.ndarray:
    column = table_of(folder)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def jpeg(id: str, size: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(id)).resize((size, size)).save(file, "JPEG")
    return file.getvalue()


def image_folder(folder: Path, count: int, bad: Sequence[int] = ()) -> Path:
    """Fill a folder with JPEG tiles, named by number; `bad` ones are cut short."""
    folder.mkdir(parents=True)
    for number in range(count):
        data = jpeg(str(number))
        (folder / f"{number:06}.jpg").write_bytes(data[:100] if number in bad else data)
    return folder
