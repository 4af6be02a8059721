"""Small reports of benchmarks, written by the writer of real ones."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import run
from benchmarks.results import SCHEMA


def row_of(section: dict[str, Any], label: str) -> dict[str, Any]:
    return next(row for row in section["contenders"] if row["label"] == label)


def row(
    label: str, ratio: float | None = None, *, side: str = "ours", error: float = 3e-7, **facts: Any
) -> dict[str, Any]:
    """Return a row that is `ratio` times as fast as eager, give or take 1%; without a ratio it was not measured."""
    made = {"label": label, "side": side, "precision": "fp32", "images": "float32", "reason": None}
    if ratio is None:
        return {**made, "reason": "it broke", **facts}
    rounds = [1.0, 1.01, 0.99, 1.005, 0.995]
    timings = {
        batch: {"seconds": [r * int(batch) / ratio for r in rounds], "eager": [float(batch)] * 5} for batch in "18"
    }
    exact = {"relative_rms": error, "min_cosine": 1.0}
    about = {"backend": label.split()[0], "load_seconds": 0.1}
    return {**made, "timings": timings, "fidelity": {"float64": exact, "eager": exact}, "about": about, **facts}


def section(*rows: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {
        "model": "a/b",
        "device": "cpu",
        "weights": "random",
        "image_size": [32, 32],
        "parameters": 1_000_000,
        "flops": 10**9,
        "products": [[10, 100, 100]],
        "not_measured": {},
        "contenders": [row("eager fp32", 1.0, side="torch"), *rows],
        "tile_seconds": {"decode": [0.001], "preprocess": [0.001]},
        **facts,
    }


def report(*sections: dict[str, Any], **machine: Any) -> dict[str, Any]:
    facts = {
        "processor": "P",
        "cpus": 2,
        "memory_gb": 25,
        "gpu": "none",
        "code": "recipe 1, commit c0ffee",
        "system": "S",
        "versions": {"torch": "2.15.0"},
        **machine,
    }
    return {
        "schema": SCHEMA,
        "command": "python -m benchmarks.run",
        "machine": facts,
        "settings": {},
        "sections": list(sections),
        "failed": {},
    }


def written(folder: Path, name: str, made: dict[str, Any]) -> str:
    """Write a report as `benchmarks.run` does; return its path."""
    run._write(made, argparse.Namespace(out=folder, name=name))
    return str(folder / f"{name}.json")
