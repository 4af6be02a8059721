"""What a verification leaves behind in memory before the next one begins."""

import re
import subprocess
import sys

import pytest

FREEING = """
import re
from pathlib import Path
from exporters.trial import give_back_memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
bytearray(24_000_000)  # from the first large block that is freed on, such blocks come from the heap
before = resident()
held = [(b"x" * (4_000_000 + n), b"y" * (50_000 + n)) for n in range(100)]
held = [small for _, small in held]  # lie between the large ones, so that the heap cannot shrink by itself
freed = resident()
give_back_memory()
print(freed - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells resident memory in /proc")
def test_freed_weights_go_back_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", FREEING], capture_output=True, text=True, check=True)
    kept, left = map(int, re.findall(r"-?\d+", ran.stdout))

    assert kept > 300, "freed memory was not kept in the first place"
    assert left < 100
