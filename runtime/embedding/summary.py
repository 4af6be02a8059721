"""What a run of embed has done, counted as it goes."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.embedding import folder as folders
from runtime.embedding import table
from runtime.embedding.batch import Rows
from runtime.embedding.parts import Part
from runtime.embedding.served import Served
from runtime.embedding.sources import Source, ignored


@dataclass(frozen=True)
class Summary:
    """What lies in the output folder after a run, and how the run went.

    Attributes:
        out: The folder.
        rows: Rows in it, of this run and of those before.
        unreadable: Tiles that could not be read, likewise; `_unreadable/` in the folder says which and why.
        tiles: Tiles that this run worked on.
        seconds: From the first tile read to the last part published.
        tiles_per_second: Of this run.
        starved: Share of the seconds in which inference waited for images, but for the first batch.
        model, backend, device, precision: What served.
        ignored: Files beside the images that are none by their names, by suffix.
    """

    out: str
    rows: int
    unreadable: int
    tiles: int
    seconds: float
    tiles_per_second: float
    starved: float
    model: str
    backend: str
    device: str
    precision: str
    ignored: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


class Tally:
    """Counts a run's batches."""

    def __init__(self) -> None:
        self.tiles = 0
        self.unreadable = 0
        self.waited = 0.0
        self._first = True

    def add(self, rows: Rows) -> None:
        """Count a batch; nothing could be done before the first one came."""
        self.tiles += rows.place.stop - rows.place.start
        self.unreadable += len(rows.unreadable)
        self.waited += 0.0 if self._first else rows.waited
        self._first = False


def summary(folder: Path, served: Served, source: Source, tally: Tally, seconds: float) -> Summary:
    """Return the summary of a run that took `seconds`."""
    rows, unreadable = counts(folder, folders.parts(folder))
    return Summary(
        out=str(folder),
        rows=rows,
        unreadable=unreadable,
        tiles=tally.tiles,
        seconds=round(seconds, 3),
        tiles_per_second=round(tally.tiles / seconds, 2),
        starved=round(tally.waited / seconds, 4),
        model=served.info["model"],
        backend=served.info["backend"],
        device=served.info["device"],
        precision=served.info["precision"],
        ignored=ignored(source),
    )


def counts(folder: Path, parts: Iterable[Part]) -> tuple[int, int]:
    """Return how many rows the parts of a folder hold, and how many of their tiles could not be read.

    Only what lists unreadable tiles is opened: a folder of a billion rows has few of those.
    """
    covered = unreadable = 0
    for part in parts:
        covered += part.stop - part.start
        beside = folder / folders.UNREADABLE / part.name
        if beside.is_file():
            unreadable += table.count(beside)
    return covered - unreadable, unreadable
