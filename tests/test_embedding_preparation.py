"""Threads that make model input: large images one at a time, whatever they are."""

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.embedding import preparation
from runtime.embedding.batch import Group
from runtime.embedding.parts import Range
from runtime.embedding.pipeline import in_order
from runtime.embedding.preparation import Preparation
from runtime.embedding.tile import Piece, Tile


def group_of(number: int, *images: object) -> Group:
    return Group(Range(Piece("a", None)), number, tuple(Tile(f"{n}", image) for n, image in enumerate(images)), False)


def blank(side: int) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


def test_large_images_are_made_one_at_a_time_and_small_ones_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "LARGE", 100)
    made: list[tuple[int, str]] = []
    lock, busy = threading.Lock(), {8: 0, 16: 0}
    most = {8: 0, 16: 0}

    def preprocess(pixels: np.ndarray) -> np.ndarray:
        side = len(pixels)
        with lock:
            busy[side] += 1
            most[side] = max(most[side], busy[side])
            made.append((side, threading.current_thread().name.split("_")[0]))
        time.sleep(0.02)
        with lock:
            busy[side] -= 1
        return np.full((1, 2), side)

    prepare = Preparation(preprocess)
    groups = [group_of(n, blank(8), blank(16), blank(8)) for n in range(6)]
    batches = list(in_order(prepare, groups, workers=3, ahead=5))
    prepare.close()

    assert [batch.images[:, 0].tolist() for batch in batches] == [[8, 16, 8]] * 6
    assert most == {8: 3, 16: 1}
    assert set(made) == {(8, "prepare"), (16, "large")}


def test_a_large_image_that_cannot_be_read_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "LARGE", 10)
    prepare = Preparation(lambda pixels: np.zeros((1, 2)))
    batch = prepare(group_of(0, blank(4), np.zeros((4, 400, 3), np.uint8)))
    prepare.close()

    assert batch.places == (0,)
    assert [one.reason for one in batch.unreadable] == ["it is 400 x 4 pixels: more than 50 times as long as wide"]


def test_who_stops_does_not_wait_for_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "LARGE", 10)
    begun = threading.Event()

    def slow(pixels: np.ndarray) -> np.ndarray:
        begun.set()
        time.sleep(0.2)
        return np.zeros((1, 2))

    prepare = Preparation(slow)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            prepare(group_of(0, *[blank(8)] * 50))
        except (CancelledError, RuntimeError) as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    started = time.monotonic()
    prepare.close()
    for thread in threads:
        thread.join()

    assert len(failed) == 3
    assert time.monotonic() - started < 5  # and not 150 images of 0.2 s


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak in /proc")
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_four_threads_take_the_memory_of_one_large_image(mode: str, tmp_path: Path) -> None:
    # Not compressed: it is decoded in many steps, between which other threads get their turn.
    Image.new(mode, (5000, 5000), 0).save(tmp_path / "large.png", compress_level=0)
    code = f"""
import re
from pathlib import Path
import numpy as np
from runtime.embedding.batch import Group
from runtime.embedding.parts import Range
from runtime.embedding.pipeline import in_order
from runtime.embedding.preparation import Preparation
from runtime.embedding.tile import Piece, Tile
from runtime.facts import Preprocessing
from runtime.preprocess import preprocess
def peak():
    # ru_maxrss would be that of the parent, if it is larger.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
facts = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
prepare = Preparation(lambda pixels: preprocess(pixels, facts))
large = Tile("large", Path({str(tmp_path / "large.png")!r}))
before = peak()
groups = [Group(Range(Piece("a", 4)), n, (large,), False) for n in range(4)]
assert [batch.places for batch in in_order(prepare, groups, workers=4, ahead=6)] == [(0,)] * 4
prepare.close()
print((peak() - before) / 25e6)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    # The decoded image has 4 bytes a pixel, the array made of it 3; then the array 3 and the resized image's source 4.
    assert float(ran.stdout) < 9
