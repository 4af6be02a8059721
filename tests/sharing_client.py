"""The commands that share artifacts, with the hub's real client, in a process of their own that need not wait.

The client reads its settings when it is imported, so other settings are another process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import ROOT, work_folder
from hub_server import TOKEN


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or what it raised, and what it printed."""

    status: int | str
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Client:
    """A running child."""

    process: subprocess.Popen[str]

    def run(self, what: str, *arguments: object, file_limit: int | None = None) -> Ended:
        """Run `push`, `pull`, `info`, `load` or `runtime.pull`; `file_limit` bytes are all that the disk takes."""
        self.start(what, *arguments, file_limit=file_limit)
        assert self.process.stdout is not None
        return Ended(*json.loads(self.process.stdout.readline()))

    def start(self, what: str, *arguments: object, file_limit: int | None = None) -> None:
        """Let it begin, and do not wait."""
        assert self.process.stdin is not None
        given = [a if isinstance(a, dict) else str(a) for a in arguments]
        print(json.dumps([what, given, file_limit]), file=self.process.stdin, flush=True)


@contextmanager
def client(home: Path, endpoint: str, **settings: str) -> Iterator[Client]:
    """Run a child whose hub is at `endpoint` and whose caches are in `home`."""
    home.mkdir(exist_ok=True)
    work_folder(home)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "BACKBONE", "XDG"))}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", home)))
    own = {"PYTHONPATH": path, "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    caches = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), "HF_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("sharing_child.py")],
        env=inherited | own | caches | settings,
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Client(process)
        assert process.stdin is not None
        process.stdin.close()
