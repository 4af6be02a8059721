"""From process start to the first embedding, and the memory it takes; started as a program, the process measured."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.build_cost import GIANT
from benchmarks.contender import Contender, ContenderError
from benchmarks.figure import Figure

MODEL = "universal/vit_small_patch16_224_random"
# One that takes long is not started again and again.
ENOUGH_SECONDS = 6.0


def measure(artifacts: str, rounds: int) -> Figure:
    """Return the figure: processes started in turns, wall time and peak resident memory of each."""
    runs: dict[str, list[tuple[float, float]]] = {"onnx": [], "eager": []}
    for number in range(rounds + 1):
        for backend in runs:
            started = start(Contender(backend, MODEL, {"backend": backend, "artifacts": artifacts}), (3, 224, 224))
            if number:  # the first round fills the file cache
                runs[backend].append((started["seconds"], started["peak_mb"]))
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


def giant(artifacts: str, rounds: int) -> Figure:
    """Return the figure of a built backbone of 1.1 billion parameters, its weights mapped (`load="fast"`)."""
    given = {"backend": "onnx", "weights": "random", "load": "fast", "artifacts": artifacts}
    runs = [start(Contender("fast", GIANT, given), (3, 224, 224)) for _ in range(rounds + 1)][1:]
    loaded = [one["seconds"] - one["first_seconds"] for one in runs]
    first = median(one["first_seconds"] for one in runs)
    return Figure(
        name=f"{GIANT}, load='fast', process start to loaded",
        goal="at most 2 s, the first inference apart",
        reached=median(loaded) <= 2,
        measured=f"{median(loaded):.2f} s ({min(loaded):.2f} to {max(loaded):.2f} over {rounds} processes, the file in "
        f"the system's cache); the first inference {first:.2f} s, peak resident memory {runs[0]['peak_mb']:.0f} MB",
        data={"model": GIANT, "runs": runs},
    )


def several(contender: Contender, image_shape: Sequence[int], most: int) -> list[dict[str, Any]]:
    """Return what `start` gives, at most `most` times; once when that takes long.

    Raises:
        ContenderError: It cannot be served here.
    """
    done: list[dict[str, Any]] = []
    while len(done) < most and sum(one["seconds"] for one in done) < ENOUGH_SECONDS:
        done.append(start(contender, image_shape))
    return done


def start(contender: Contender, image_shape: Sequence[int]) -> dict[str, Any]:
    """Return what a fresh process took to embed one image.

    `seconds` from its start to that embedding, `first_seconds` of the inference itself, `peak_mb` of resident memory
    and, on a GPU, `device_mb`.

    Args:
        contender: What to serve.
        image_shape: Of one image, channels first.

    Raises:
        ContenderError: It cannot be served here.
    """
    task = json.dumps({**asdict(contender), "image_shape": list(image_shape)})
    before = _device_mb()
    command = [sys.executable, "-m", "benchmarks.cold_start", task]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()  # written after the first embedding, before the process is taken down
        seconds = time.perf_counter() - started
        _, messages = process.communicate()
    if not line.startswith("{"):
        last = (messages.strip().splitlines() or ["no message"])[-1]
        raise ContenderError(f"its process ended with status {process.returncode}: {last}")
    told = json.loads(line)
    if "reason" in told:
        raise ContenderError(told["reason"])
    if told["device_mb"] is not None:
        told["device_mb"] -= before
    return {"seconds": seconds, **told}


def _device_mb() -> float:
    """Return the GPU memory in use, by anybody; 0 where nobody can tell."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    told = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    return float(told) * 1.048576 if told.isdecimal() else 0.0


def main(task: dict[str, Any]) -> None:
    """Body of the process measured: one embedding, then a line that says what it took."""
    import numpy

    from benchmarks import ways

    channels, *size = task["image_shape"]
    shape, dtype = ((1, channels, *size), "float32") if task["images"] == "float32" else ((1, *size, channels), "uint8")
    try:
        served, _ = ways.load_timed(task["way"], task["model"], task["options"], ())
        images, loaded = served.to_input(numpy.zeros(shape, dtype)), time.perf_counter()
        served.to_arrays(served.call(images))
        first = time.perf_counter() - loaded
    except Exception as error:
        print(json.dumps({"reason": ways.reason(error)}), flush=True)
        return
    memory = {"peak_mb": ways.peak_resident_mb(), "device_mb": _used_by_torch_device(served)}
    print(json.dumps({"first_seconds": first, **memory}), flush=True)


def _used_by_torch_device(served: Any) -> float | None:
    if not str(served.about.get("device", "cpu")).startswith("cuda"):
        return None
    free, total = sys.modules["torch"].cuda.mem_get_info()
    return float(total - free) / 1e6


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
