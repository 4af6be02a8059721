"""From process start to the first embedding: a published artifact against eager torch."""

import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.figure import Figure

MODEL = "universal/vit_small_patch16_224_random"
PROGRAM = """
import numpy as np
from runtime import load_model
model = load_model({model!r}, backend={backend!r}, artifacts={artifacts!r}, on_fallback="error")
assert model(np.zeros((1, 3, 224, 224), np.float32)).shape == (1, 384)
"""


def measure(artifacts: str, rounds: int) -> Figure:
    """Return the figure: processes started in turns, wall time and peak resident memory of each."""
    runs: dict[str, list[tuple[float, float]]] = {"onnx": [], "eager": []}
    for number in range(rounds + 1):
        for backend in runs:
            result = _one_process(PROGRAM.format(model=MODEL, backend=backend, artifacts=artifacts))
            if number:  # the first round fills the file cache
                runs[backend].append(result)
    sooner = median(e[0] / o[0] for e, o in zip(runs["eager"], runs["onnx"], strict=True))
    memory = median(o[1] / e[1] for e, o in zip(runs["eager"], runs["onnx"], strict=True))
    medians = {b: (median(s for s, _ in r), median(m for _, m in r)) for b, r in runs.items()}
    return Figure(
        name="ViT-S/16, process start to first embedding",
        goal="at least 8 times sooner than eager torch, at most a quarter of its resident memory",
        reached=sooner >= 8 and memory <= 0.25,
        measured=f"{sooner:.1f} times sooner, {memory:.2f} of the memory (onnx {medians['onnx'][0]:.2f} s, "
        f"{medians['onnx'][1]:.0f} MB; eager {medians['eager'][0]:.2f} s, {medians['eager'][1]:.0f} MB)",
        data={"model": MODEL, "rounds": rounds, "seconds_and_peak_mb": runs},
    )


def _one_process(program: str) -> tuple[float, float]:
    """Return wall seconds and peak resident megabytes of a Python process that runs `program`."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the measured process failed with status {process.returncode}")
    return seconds, usage.ru_maxrss / 1000
