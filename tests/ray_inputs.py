"""An input that tells who reads it, slowly, and may kill its reader."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_inputs import Pieces

from runtime.embedding.tile import Piece, Tile
from runtime.errors import InputError


@dataclass(frozen=True)
class Watched:
    """`Pieces`, a pause before each tile; readers leave a file named by their process in `notes`."""

    pieces_: Pieces
    notes: Path
    pause: float = 0.0
    deadly: str | None = None
    damaged: str | None = None

    def pieces(self) -> Sequence[Piece]:
        return self.pieces_.pieces()

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        for tile in self.pieces_.tiles(piece, start):
            (self.notes / str(os.getpid())).touch()
            time.sleep(self.pause)
            if tile.id == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if tile.id == self.damaged:
                raise InputError(f"{tile.id} is damaged.")
            yield tile

    def fingerprint(self) -> str:
        return self.pieces_.fingerprint()

    def workers(self) -> list[int]:
        """Return who has read, but for the process that asks: who read last comes last."""
        found = sorted(self.notes.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.name) for path in found if path.name != str(os.getpid())]


def watched(
    counts: dict[str, int], notes: str, *, bad: Sequence[str] = (), coarse: bool = False, **how: Any
) -> Watched:
    Path(notes).mkdir(exist_ok=True)
    return Watched(Pieces(counts, bad=frozenset(bad), coarse=coarse), Path(notes), **how)
