"""Images per second, fp32: the onnx backend against eager torch."""

from statistics import median

import numpy as np

from benchmarks.contender import WITHOUT_TORCH, Contender, runners
from benchmarks.figure import Figure
from benchmarks.turns import in_turns, ratios

GOAL = 1.8


def measure(label: str, model: str, weights: str, artifacts: str, batch: int, rounds: int) -> Figure:
    """Return the figure for one model, in turns on the CPU."""
    options = {"weights": weights, "artifacts": artifacts, "device": "cpu"}
    contenders = [
        Contender("onnx", model, {"backend": "onnx", **options}, blocked=WITHOUT_TORCH),
        Contender("torchscript", model, {"backend": "torchscript", **options}),
        Contender("eager", model, {"backend": "eager", **options}),
    ]
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    with runners(contenders) as made:
        seconds = in_turns(made, images, rounds)
    low, middle, high = ratios(seconds["onnx"], seconds["eager"])
    rates = ", ".join(f"{name} {batch / median(s):.1f}" for name, s in seconds.items())
    return Figure(
        name=f"{label} fp32 on the CPU, batch {batch}",
        goal=f"onnx at least {GOAL} times the throughput of eager",
        reached=middle >= GOAL,
        measured=f"{middle:.2f} times ({low:.2f} to {high:.2f} over {rounds} rounds; images/s: {rates})",
        data={"model": model, "batch": batch, "rounds": rounds, "seconds": seconds},
    )
