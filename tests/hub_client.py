"""The real client of the Hugging Face hub, in a process of its own and pointed at a server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import runtime

FILES = ("model.safetensors", "pytorch_model.bin")
# The client reads its settings when it is imported, so it runs in a process of its own; it need not wait between tries.
CHILD = """
import json, os, sys, time
from huggingface_hub import constants
from runtime.download import fetch
from runtime.errors import WeightsError
from runtime.facts import HubFile

time.sleep = lambda seconds: None
if patience := os.environ.get("PATIENCE"):
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = float(patience)
    constants.DOWNLOAD_CHUNK_SIZE = 1000  # what it has written it need not ask for again
for line in sys.stdin:
    repo, filenames, revision, gated = json.loads(line)
    try:
        answer = [str(part) for part in fetch(HubFile(repo, tuple(filenames), revision), "test/model", gated)]
    except WeightsError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""

Fetch = Callable[..., list[str] | str]


def client(home: Path, **settings: str) -> Iterator[Fetch]:
    """Give a function that fetches in a child; it returns path and revision, or the error's text."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    here = {"HF_HOME": str(home), "PYTHONPATH": str(Path(runtime.__file__).parent.parent), "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=clean | here | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def fetch(
            repo: str, filenames: tuple[str, ...] = FILES, revision: str | None = None, gated: bool = False
        ) -> list[str] | str:
            print(json.dumps([repo, filenames, revision, gated]), file=child.stdin, flush=True)
            answer: list[str] | str = json.loads(child.stdout.readline())
            return answer

        yield fetch
        child.stdin.close()
