"""How children of the builder start: what an interrupt does meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import ROOT

SLOW = """
import time

print("importing", flush=True)
time.sleep(1)
"""
# The first process waits until the server has imported what it was told to.
START = """
import sys
from exporters import processes

try:
    process = processes.context(("slow",)).Process(target=print, args=("started",))
    process.start()
    process.join()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose fork server is importing, in a group of their own as in a terminal."""
    (tmp_path / "slow.py").write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-c", START],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        yield process


def test_an_interrupt_while_the_fork_server_imports_is_the_parents_alone(starting: subprocess.Popen[str]) -> None:
    os.killpg(starting.pid, signal.SIGINT)
    out, err = starting.communicate(timeout=60)

    assert (starting.returncode, out, err) == (130, "", "")


def test_without_an_interrupt_the_child_starts(starting: subprocess.Popen[str]) -> None:
    out, err = starting.communicate(timeout=60)

    assert (starting.returncode, out, err) == (0, "started\n", "")
