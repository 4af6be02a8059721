"""Running a graph in OpenVINO: all threads on one inference, or a batch spread over inferences of one thread each."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.errors import DeviceError

MOST_A_THREAD = 4  # images: with more, what passes between two layers no longer stays in a core's cache


def images_each(count: int, threads: int) -> int | None:
    """Return how many images of a batch a thread takes at a time; `None` where the threads share each inference.

    Apart, no thread waits for another within the network (docs/decisions.md: what it gains). A batch of which some
    thread would get so few that a fifth of all threads' time were idle is shared instead.
    """
    share = -(-count // threads)
    if threads == 1 or 5 * count < 4 * share * threads:
        return None
    return -(-share // -(-share // MOST_A_THREAD))


class OpenvinoSession:
    """A graph compiled by OpenVINO for all threads together or, from the first batch on, for each thread apart.

    Its prepared weights are in memory once as long as only single images or only batches come: the first batch replaces
    what was compiled when loading, and a single image between batches is run as they are. Given several single images
    in a row after batches it keeps both. `run` may be called from several threads at once.

    Args:
        compiled: Compiles the graph for so many inferences side by side.
        reason: Why it runs on this device.
        spread: Whether batches may be split; without, each is one inference.
    """

    native = "numpy"
    device = "cpu"
    providers: tuple[str, ...] = ()

    def __init__(self, compiled: Callable[[int], Any], reason: str, *, spread: bool) -> None:
        self._compile = compiled
        self.reason = reason
        self._spread = spread
        first = compiled(1)
        self._threads = first.get_property("INFERENCE_NUM_THREADS")  # no more than there are CPUs
        self._outputs = len(first.outputs)
        self._together: _Compiled | None = _Compiled(first, first.create_infer_request)
        self._apart: _Compiled | None = None
        self._choosing = threading.Lock()
        self._small_in_a_row = 0

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a batch, as numpy arrays of their own."""
        rows = _Rows(len(images), self._outputs)
        each = images_each(len(images), self._threads) if self._spread else None
        chosen, apart = self._chosen(small=each is None)
        with chosen.idle() as taken:
            if apart:
                self._run_apart(taken, images, rows, each or -(-len(images) // self._threads))
            else:
                self._run_together(taken, images, rows)
        return rows.arrays

    def _run_together(self, request: Any, images: Any, rows: "_Rows") -> None:
        at_once = 2 * self._threads if self._spread else len(images)
        for row in range(0, len(images), at_once):
            request.infer({0: images[row : row + at_once]}, share_inputs=True, share_outputs=True)
            rows.keep(request, row)

    def _run_apart(self, queue: Any, images: Any, rows: "_Rows", each: int) -> None:
        queue.set_callback(rows.keep)
        for row in range(0, len(images), each):
            queue.start_async({0: images[row : row + each]}, userdata=row, share_inputs=True)
        queue.wait_all()
        queue.set_callback(_drop)  # the outputs are the caller's alone from here on

    def _chosen(self, *, small: bool) -> tuple["_Compiled", bool]:
        """Return what serves a batch, and whether its threads run apart there.

        A small batch after large ones is most often the rest of a data set, not worth seconds of compiling and the
        prepared weights of a giant twice. A second one in a row is.
        """
        with self._choosing:
            self._small_in_a_row = self._small_in_a_row + 1 if small else 0
            if not small or (self._together is None and self._small_in_a_row == 1):
                self._apart = self._apart or self._compiled_apart()
                return self._apart, True
            if self._together is None:
                compiled = self._compiled_later(1)
                self._together = _Compiled(compiled, compiled.create_infer_request)
            return self._together, False

    def _compiled_apart(self) -> "_Compiled":
        from openvino import AsyncInferQueue

        self._together = None  # before, not after: a giant would stand in memory twice
        threads = self._threads  # a queue that knew this session would keep it alive
        compiled = self._compiled_later(threads)
        return _Compiled(compiled, lambda: AsyncInferQueue(compiled, threads))

    def _compiled_later(self, streams: int) -> Any:
        """Return the graph compiled anew, by the first call that needs it so.

        Raises:
            DeviceError: OpenVINO cannot, most often for want of memory.
        """
        try:
            return self._compile(streams)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO loaded this graph but cannot compile it once more, for {streams} at a time: "
                f"{last_line(error)}. Load it with batch_sizes=, such as (1, 32), or threads=1: it is then compiled "
                "once, when loading."
            ) from error


class _Compiled:
    """A compiled graph with its requests or queues: each belongs to one call at a time, idle ones are kept."""

    def __init__(self, graph: Any, new: Callable[[], Any]) -> None:
        self.graph = graph
        self._new = new
        self._idle: deque[Any] = deque()

    @contextmanager
    def idle(self) -> Iterator[Any]:
        """Give one that no other call uses; not kept after an error, when an inference may be under way."""
        try:
            taken = self._idle.pop()
        except IndexError:
            taken = self._new()
        yield taken
        self._idle.append(taken)


def _drop(request: Any, row: int) -> None:
    """Keep nothing."""


class _Rows:
    """The outputs of a batch, put together from those of its parts in any order, from any thread."""

    def __init__(self, count: int, outputs: int) -> None:
        self.arrays: list[Any] = []
        self._count, self._outputs = count, outputs
        self._making = threading.Lock()

    def keep(self, request: Any, row: int) -> None:
        """Copy what a request has computed: its memory is the next inference's, too."""
        parts = [request.get_output_tensor(index).data for index in range(self._outputs)]
        with self._making:  # shapes are known when the first part is there
            if not self.arrays:
                self.arrays = [np.empty((self._count, *part.shape[1:]), part.dtype) for part in parts]
        for array, part in zip(self.arrays, parts, strict=True):
            array[row : row + len(part)] = part


def last_line(error: RuntimeError) -> str:
    """Return the cause: OpenVINO begins with where in its own source it was met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
