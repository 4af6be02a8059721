"""What a long list of names leaves behind in memory."""

import re
import subprocess
import sys

import pytest

LISTING = """
import re
from pathlib import Path
from runtime.embedding.sources import listing
def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def listed(count):
    listing._entries = lambda path: (Path("tiles"), (f"{7919 * n % count:036}.jpg" for n in range(count)))
    return listing.find_files("tiles", slides=False)[1]
listed(1000)
before = resident()
names = listed(1_000_000)
print((resident() - before) / 1e6, names.names.nbytes / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells resident memory in /proc")
def test_sorting_a_million_names_leaves_little_more_than_the_names() -> None:
    ran = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, check=True)
    taken, held = map(float, re.findall(r"[\d.]+", ran.stdout))

    assert held == pytest.approx(48, rel=0.01)
    assert taken < 2 * held
