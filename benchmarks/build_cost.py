"""What building costs: disk for a further variant, memory for a giant."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.figure import Figure

GIANT = "pathology/bioptimus_h_optimus_0"


def further_variant(model: str, artifacts: str) -> Figure:
    """Return how much the model's folder grows, in all default forms, when a variant is built by a later process."""
    folder = Path(artifacts) / model
    run_build(model, artifacts, "--out-indices=none")
    before = _size(folder)
    run_build(model, artifacts, "--out-indices=4")
    added = _size(folder) - before
    return Figure(
        name="ViT-B/16, a further out_indices variant",
        goal="adds less than 2% to the model's folder",
        reached=added < 0.02 * before,
        measured=f"{100 * added / before:.2f}% ({added / 1e6:.2f} MB on {before / 1e6:.1f} MB), all graphs together",
        data={"model": model, "bytes_before": before, "bytes_added": added},
    )


def both_targets_and_half(model: str, artifacts: str) -> Figure:
    """Return how much a published fp32 model's folder grows when graphs for CUDA and in fp16 are added."""
    folder = Path(artifacts) / model
    onnx = ("--out-indices=none", "--format=onnx")
    run_build(model, artifacts, *onnx, "--target=cpu")
    before = _size(folder)
    run_build(model, artifacts, *onnx, "--target=cpu,cuda", "--precision=fp32,fp16")
    added = _size(folder) - before
    return Figure(
        name="ViT-S/16, graphs for CUDA and fp16 added to a published fp32 model",
        goal="adds at most 60% to the model's folder",
        reached=added <= 0.6 * before,
        measured=f"{100 * added / before:.1f}% ({added / 1e6:.1f} MB on {before / 1e6:.1f} MB)",
        data={"model": model, "bytes_before": before, "bytes_added": added},
    )


def giant(artifacts: str) -> Figure:
    """Return the peak memory of building and verifying a backbone of 1.1 billion parameters in every default form."""
    peak = run_build(GIANT, artifacts, "--out-indices=none", "--force")
    weights = _weights(Path(artifacts) / GIANT)
    return Figure(
        name=f"{GIANT}, random weights, built and verified",
        goal="peak memory at most 2.5 times its fp32 weights, within 24 GB",
        reached=peak <= 2.5 * weights and peak <= 24e9,
        measured=f"{peak / weights:.2f} times ({peak / 1e9:.1f} GB for {weights / 1e9:.2f} GB of weights)",
        data={"model": GIANT, "peak_bytes": peak, "weight_bytes": weights},
    )


def run_build(model: str, artifacts: str, *options: str) -> int:
    """Build with random weights; return the peak resident bytes of the largest process.

    Raises:
        RuntimeError: The build failed.
    """
    command = [sys.executable, "-m", "exporters.build", model, "--weights=random", f"--artifacts={artifacts}", *options]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}")
    return max(int(json.loads(line)["peak_bytes"]) for line in done.stdout.splitlines())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("weights.*.data"))
