"""Writing rows: collected beside inference, published part by part."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from runtime.embedding import folder as folders
from runtime.embedding import maps, table
from runtime.embedding.batch import Rows
from runtime.embedding.maps import Layout
from runtime.embedding.parts import Part, key_of
from runtime.embedding.table import Columns

# A part is published after so many tiles, or when its numbers take so many bytes.
PART_TILES = 8192
PART_BYTES = 64 * 2**20
# Batches that may wait to be written: what is computed faster than it is written must not pile up.
WAITING = 4


@dataclass(frozen=True)
class Output:
    """Where parts go; picklable, so that the workers of a cluster can publish.

    Attributes:
        folder: Held by whoever runs (`folder.held`) and begun.
        columns: What the rows hold.
        layout: Where feature maps lie; `None` for embeddings.
        staging: Where files are filled before they get their name; `None` for beside it. See `folder.staged`.
    """

    folder: Path
    columns: Columns
    layout: Layout | None = None
    staging: Path | None = None

    def write_maps(self, rows: Rows) -> None:
        """Write a batch's feature maps, if there are any to write; its part will point at them."""
        if self.layout is not None:
            with folders.output_errors(self.folder):
                maps.write(self.folder / folders.MAPS, self.layout, rows)

    def publish(self, rows: Sequence[Rows]) -> Part:
        """Publish batches that follow each other as one part: what could not be read, then its rows.

        Raises:
            OutputError: The folder cannot be written, or a number does not fit.
        """
        first, last = rows[0].place, rows[-1].place
        ended = last.ends and last.range.to_the_end
        part = Part(key_of(first.range.piece), first.start, last.stop, ended)
        with folders.output_errors(self.folder):
            self._publish_unreadable(part, rows)
            made = table.part_table(rows, self.columns, self._sync_maps(rows))
            folders.publish(self.folder / part.name, partial(table.write, made), self.staging)
        return part

    def _publish_unreadable(self, part: Part, rows: Sequence[Rows]) -> None:
        unreadable = [one for batch in rows for one in batch.unreadable]
        beside = self.folder / folders.UNREADABLE
        if unreadable:
            beside.mkdir(exist_ok=True)
            made = table.unreadable_table(unreadable)
            folders.publish(beside / part.name, partial(table.write, made), self.staging)

    def _sync_maps(self, rows: Sequence[Rows]) -> table.Places:
        if self.layout is None:
            return None
        maps.sync(self.folder / folders.MAPS, self.layout, rows)
        return maps.places(self.layout, rows)


def part_tiles(columns: Columns, batch_size: int, asked: int | None = None) -> int:
    """Return after how many tiles a part is published, a whole number of batches."""
    bytes_of_row = max(1, columns.width * 4)
    tiles = asked or min(PART_TILES, PART_BYTES // bytes_of_row)
    return max(1, tiles // batch_size) * batch_size


class Writer:
    """Publishes rows from a thread of its own, in parts of `tiles`.

    What fails there is raised by a later `add`, or when leaving; nothing is written after it. Left because something
    else failed, it publishes what it was given; left by an interrupt, it does not.
    """

    def __init__(self, output: Output, tiles: int) -> None:
        self._output = output
        self._tiles = tiles
        self._held: list[Rows] = []
        self._broken = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: deque[Future[None]] = deque()

    def add(self, rows: Rows) -> None:
        """Hand over a batch; waits while too many are yet to be written.

        Raises:
            OutputError: An earlier batch could not be written.
        """
        while len(self._pending) >= WAITING:
            self._pending.popleft().result()
        self._submit(partial(self._take, rows))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                self._submit(self._publish)
                while self._pending:
                    self._pending.popleft().result()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, do: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(self._unless_broken, do))

    def _unless_broken(self, do: Callable[[], None]) -> None:
        """Do nothing after a failure: a part over a batch that is not there would lose its rows."""
        if self._broken:
            return
        try:
            do()
        except BaseException:
            self._broken = True
            raise

    def _take(self, rows: Rows) -> None:
        if self._held and self._held[-1].place.range is not rows.place.range:
            self._publish()
        self._output.write_maps(rows)
        self._held.append(rows)
        if rows.place.ends or rows.place.stop - self._held[0].place.start >= self._tiles:
            self._publish()

    def _publish(self) -> None:
        if self._held:
            self._output.publish(self._held)
            self._held = []
