"""Weight files that a library has mapped into this process."""

import contextlib
import ctypes
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
# Of one of its lines; shared and read-only, so that nobody can have written what dropping it would lose.
_READ_ONLY = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) r--s \S+ \S+ \d+ +(/.*)$", re.MULTILINE)
# Seconds between two looks: a library reads a few hundred megabytes meanwhile.
_PAUSE = 0.05


@contextlib.contextmanager
def dropping_pages(folder: Path) -> Iterator[None]:
    """Drop the pages of the weight files in `folder` while the block reads them, and once more when it is done."""
    done = threading.Event()

    def drop() -> None:
        while not done.wait(_PAUSE):
            drop_pages(folder)

    thread = threading.Thread(target=drop, name="drop-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop_pages(folder)


def drop_pages(folder: Path) -> None:
    """Take the pages of the weight files in `folder` out of this process's memory; what is read again comes back.

    They stay in the system's cache. Where the system does not tell what is mapped nothing is done.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):  # a sandbox without /proc
        for start, end in _mapped(folder):
            libc.madvise(start, end - start, mmap.MADV_DONTNEED)


def _mapped(folder: Path) -> Iterator[tuple[int, int]]:
    """Return the address ranges of read-only mappings of the folder's weight files."""
    # The kernel writes a newline, which would end its line, as an octal number.
    prefix = os.fsencode(f"{os.path.realpath(folder)}/weights.").replace(b"\n", b"\\012")
    for start, end, path in _READ_ONLY.findall(_MAPS.read_bytes()):
        if path.startswith(prefix):
            yield int(start, 16), int(end, 16)
