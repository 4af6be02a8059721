"""In which order `backend="auto"` tries the backends: as fast as they were measured to be.

The measurements are those of a committed report; `python -m benchmarks.ranking` distils them into measured.json.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

# Where nothing was measured: what needs no torch first, and what is compiled before what is not.
UNMEASURED = ("onnx", "openvino", "pt2", "torchscript", "eager")
# What falls back is eager torch, however fast it is: an artifact was built to be served.
LAST = "eager"
# What is faster by less is as fast: then what starts sooner and needs less comes first.
MARGIN = 1.1


@cache
def measurements() -> Mapping[str, Any]:
    """Return what measured.json holds: by device and precision the backends, the fastest first."""
    file = files("runtime").joinpath("measured.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def order(device: str, precision: str, measured: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Return every backend, the fastest first as far as was measured, eager last."""
    speeds = {entry["backend"]: entry["times_eager"] for entry in _entries(device, precision, measured)}
    first: list[str] = []
    for backend in (b for b in UNMEASURED if b in speeds and b != LAST):
        place = len(first)
        while place and speeds[backend] > MARGIN * speeds[first[place - 1]]:
            place -= 1
        first.insert(place, backend)
    return (*first, *(b for b in UNMEASURED if b not in first and b != LAST), LAST)


def reason(backend: str, device: str, precision: str, measured: Mapping[str, Any] | None = None) -> str | None:
    """Return why `auto` preferred `backend`, in numbers; `None` where it was not measured."""
    entries = {entry["backend"]: entry for entry in _entries(device, precision, measured)}
    if backend not in entries:
        return None
    speeds = ", ".join(f"{name} {entry['times_eager']:g}" for name, entry in entries.items())
    source = (measurements() if measured is None else measured)["source"]
    return f"{precision} on {device}, times the speed of eager fp32: {speeds} ({source})"


def _entries(device: str, precision: str, measured: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    data = measurements() if measured is None else measured
    return list(data.get("ranking", {}).get(device, {}).get(precision, ()))
