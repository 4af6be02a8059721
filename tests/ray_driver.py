"""A run of embed on a Ray cluster, in a process of its own: `ray_driver.py JSON`. What strikes it, strikes from here.

JSON: `source` (arguments of `watched`), `out`, `artifacts`, `embed` (keywords of `runtime.embed`), `strike` (whether to
kill a worker when the first part is done). Prints a line for each part, and a JSON object at the end.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny_backbones  # noqa: F401  (registers test/*)
from embedding_inputs import NAME
from ray_inputs import Watched, watched

import runtime
from runtime.errors import BackboneError


class Strike:
    """Progress of a run, at the first of which a worker is killed."""

    def __init__(self, source: Watched, armed: bool) -> None:
        self._source = source
        self._armed = armed
        self.told: list[tuple[int, int | None]] = []

    def __call__(self, done: int, to_do: int | None) -> None:
        self.told.append((done, to_do))
        if not done:  # told at the start
            return
        print("progress", flush=True)
        if self._armed:
            self._armed = False
            os.kill(self._source.workers()[-1], signal.SIGKILL)  # who read last is at it


def main(given: dict[str, Any]) -> dict[str, Any]:
    source = watched(**given["source"])
    progress = Strike(source, given.get("strike", False))
    keywords = {"weights": "random", "artifacts": given["artifacts"], "on_fallback": "error", "engine": "ray"}
    small = {"batch_size": 8, "part_tiles": 16}
    try:
        summary = runtime.embed(
            NAME, source, Path(given["out"]), progress=progress, **keywords, **small, **given["embed"]
        )
    except BackboneError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"summary": asdict(summary), "progress": progress.told, "workers": source.workers()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
