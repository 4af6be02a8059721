"""Running a graph in OpenVINO: all threads on one inference, or a batch spread over inferences of one thread each."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

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
    what was compiled when loading. Given both in turn it keeps both. `run` may be called from several threads at once.

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
        self._together: Any = compiled(1)
        self._threads = self._together.get_property("INFERENCE_NUM_THREADS")  # no more than there are CPUs
        self._outputs = len(self._together.outputs)
        self._apart: Any = None
        self._compiling = threading.Lock()
        # A request or queue belongs to one call at a time: as many as were ever needed at once are kept.
        self._requests: deque[Any] = deque()
        self._queues: deque[Any] = deque()

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a batch, as numpy arrays of their own."""
        rows = _Rows(len(images), self._outputs)
        each = images_each(len(images), self._threads) if self._spread else None
        if each is None:
            self._run_together(images, rows)
        else:
            self._run_apart(images, rows, each)
        return rows.arrays

    def _run_together(self, images: Any, rows: "_Rows") -> None:
        request = _taken(self._requests, self._new_request)
        at_once = 2 * self._threads if self._spread else len(images)
        for row in range(0, len(images), at_once):
            request.infer({0: images[row : row + at_once]}, share_inputs=True, share_outputs=True)
            rows.keep(request, row)
        self._requests.append(request)

    def _run_apart(self, images: Any, rows: "_Rows", each: int) -> None:
        queue = _taken(self._queues, self._new_queue)
        queue.set_callback(rows.keep)
        for row in range(0, len(images), each):
            queue.start_async({0: images[row : row + each]}, userdata=row, share_inputs=True)
        queue.wait_all()
        queue.set_callback(_drop)  # the outputs are the caller's alone from here on
        self._queues.append(queue)

    def _new_request(self) -> Any:
        with self._compiling:
            if self._together is None:
                self._together = self._compile(1)
            return self._together.create_infer_request()

    def _new_queue(self) -> Any:
        from openvino import AsyncInferQueue

        with self._compiling:
            if self._apart is None:
                self._together = None  # before, not after: a giant would stand in memory twice
                self._requests.clear()
                self._apart = self._compile(self._threads)
            return AsyncInferQueue(self._apart, self._threads)


def _taken(idle: deque[Any], make: Callable[[], Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:
        return make()


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
