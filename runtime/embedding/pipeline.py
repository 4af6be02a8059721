"""Reading and decoding beside inference: threads that work ahead, in order, within bounds."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(
    make: Callable[[Item], Made], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Made, None, None]:
    """Yield `make(item)` for each of `items`, in their order.

    One thread draws the items, `workers` threads make of them, at most `ahead` items beyond the one that was taken
    last. What either raises is raised here, in its place. When the caller stops, they stop.

    Args:
        make: Called in the threads.
        items: Drawn in a thread of its own, so that it may wait for a disk.
        workers: How many threads call `make`.
        ahead: How many results may lie ready or be in the making.
    """
    results: queue.SimpleQueue[Future[Made] | None] = queue.SimpleQueue()
    free, stopped = threading.Semaphore(ahead), threading.Event()

    def draw() -> Iterator[Item]:
        drawn = iter(items)
        while free.acquire() and not stopped.is_set():
            try:
                yield next(drawn)
            except StopIteration:
                return

    def fill() -> None:
        try:
            for item in draw():
                results.put(pool.submit(make, item))
        except BaseException as error:  # it belongs to who waits at the other end
            failed: Future[Made] = Future()
            failed.set_exception(error)
            results.put(failed)
        results.put(None)

    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        reader = threading.Thread(target=fill, name="read", daemon=True)
        reader.start()
        try:
            while (result := results.get()) is not None:
                yield result.result()
                free.release()
        finally:
            stopped.set()
            free.release()
            pool.shutdown(wait=False, cancel_futures=True)
            reader.join()
