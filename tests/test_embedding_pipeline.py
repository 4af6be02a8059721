"""Threads that work ahead: in order, within bounds, and gone when nobody listens."""

import threading
import time
from collections.abc import Iterator

import pytest

from runtime.embedding.pipeline import in_order


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_the_order_of_the_items(workers: int, count: int) -> None:
    def make(number: int) -> int:
        time.sleep(0.001 * (number % 3))  # later ones are ready earlier
        return number * number

    assert list(in_order(make, range(count), workers=workers, ahead=4)) == [n * n for n in range(count)]


def test_no_more_is_drawn_than_the_bound_allows() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    results = in_order(lambda number: number, items(), workers=2, ahead=5)
    for taken in range(20):
        assert next(results) == taken
        time.sleep(0.005)
        assert len(drawn) <= taken + 5
    results.close()
    assert len(drawn) <= 25


def test_work_goes_on_while_the_caller_is_busy() -> None:
    ready = threading.Event()
    results = in_order(lambda number: ready.set() if number == 2 else None, range(5), workers=1, ahead=3)
    next(results)
    assert ready.wait(5)
    results.close()


def test_what_a_worker_raises_comes_in_its_place() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(make, range(10), workers=2, ahead=4)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_what_the_items_raise_comes_after_those_before() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("gone")

    results = in_order(lambda number: number, items(), workers=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(results)


def test_a_thread_that_exits_is_an_error_not_a_hang() -> None:
    def make(number: int) -> int:
        raise SystemExit(number)

    with pytest.raises(SystemExit):
        next(in_order(make, range(3), workers=1, ahead=2))


def test_a_caller_that_stops_stops_the_threads() -> None:
    results = in_order(lambda number: time.sleep(0.001), iter(int, 1), workers=3, ahead=6)
    next(results)
    results.close()
