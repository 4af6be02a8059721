"""Pages of mapped weight files: given back where nobody can have written to them, and read again when asked for."""

import mmap
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import request_for
from stores import NAME, graph_of

from runtime.artifacts import Store
from runtime.backends import mapped_weights, openvino
from runtime.backends.mapped_weights import drop_pages, dropping_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the pages of a mapping in /proc")


def resident(folder: Path) -> list[int]:
    """Return how many kB of each mapping of the folder's weight files are in this process's memory."""
    found: list[int] = []
    named = os.fsencode(folder).replace(b"\n", b"\\012") + b"/weights."
    inside = False
    for line in Path("/proc/self/smaps").read_bytes().split(b"\n"):
        if re.match(rb"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = named in line
        elif inside and line.startswith(b"Rss:"):
            found.append(int(line.split()[1]))
    return found


@pytest.fixture(params=["plain", "with a space", "with\na newline", "mit Übermaß"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A weight file of a megabyte, in a folder of any name."""
    file = tmp_path / request.param / "weights.0123456789ab.data"
    file.parent.mkdir()
    file.write_bytes(bytes(range(256)) * 4096)
    return file


def test_pages_that_were_read_leave_memory_and_come_back(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert resident(weights.parent) == [1024]

        drop_pages(weights.parent)

        assert resident(weights.parent) == [0]
        assert mapped[:] == bytes(range(256)) * 4096


def test_what_somebody_wrote_into_a_private_mapping_stays(weights: Path) -> None:
    tensor = torch.from_file(str(weights), shared=False, size=2**20, dtype=torch.uint8)
    tensor.fill_(7)

    drop_pages(weights.parent)

    assert bool((tensor == 7).all())


def test_pages_of_another_folder_are_left_alone(weights: Path, tmp_path: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) == 0

        drop_pages(tmp_path)

        assert resident(weights.parent) == [1024]


def test_pages_leave_memory_while_somebody_reads(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        with dropping_pages(weights.parent):
            assert sum(mapped[::4096]) == 0
            end = time.monotonic() + 10
            while resident(weights.parent) != [0] and time.monotonic() < end:
                time.sleep(0.01)
            during = resident(weights.parent)
            assert sum(mapped[::4096]) == 0

        assert (during, resident(weights.parent)) == ([0], [0])
    assert "drop-pages" not in [thread.name for thread in threading.enumerate()]


def test_where_no_mappings_are_told_nothing_is_done(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "_MAPS", weights.parent / "missing")

    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        drop_pages(weights.parent)

        assert resident(weights.parent) == [1024]


def test_openvino_keeps_no_pages_of_what_it_has_packed(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "store")  # what other tests have mapped of `built` does not count
    graph = graph_of(Store(tmp_path / "store"), "onnx")

    session = openvino.load(graph, request_for(NAME, weights="random", device="cpu"))

    assert resident(graph.parent) == [0]
    [embedding] = session.run(np.zeros((2, 3, 32, 32), np.float32))
    assert np.isfinite(embedding).all()
