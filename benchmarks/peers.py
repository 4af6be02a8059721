"""Graphs as others make them, from the same weights; started as a program, one process per export."""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class PeerError(RuntimeError):
    """Another project's export did not give a graph; the message says why."""


def export(
    kind: str, model: str, weights: str, image_shape: Sequence[int], folder: Path, *, python: str = sys.executable
) -> Path:
    """Return the graph that `kind` (`dynamo`, `legacy` or `optimum`) makes of a backbone, in the interpreter `python`.

    Raises:
        PeerError: It cannot, or is not installed.
    """
    graph = folder / kind / "model.onnx"
    graph.parent.mkdir(parents=True)
    task = json.dumps([kind, model, weights, list(image_shape), str(graph)])
    command = [python, "-m", "benchmarks.peers", task]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = (done.stdout.strip().splitlines() or ["no message"])[-1]
    if done.returncode:
        raise PeerError(last.removeprefix("reason: "))
    return graph


def optimum_version(python: str) -> str:
    """Return the version of optimum-onnx that an interpreter has.

    Raises:
        PeerError: It has none, or is no interpreter.
    """
    ask = "import importlib.metadata as m; print(m.version('optimum-onnx'))"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    except OSError as error:
        raise PeerError(f"{python} cannot be started: {error.strerror}") from error
    if done.returncode:
        raise PeerError(f"{python} has no optimum-onnx")
    return done.stdout.strip()


def main(kind: str, model: str, weights: str, image_shape: list[int], graph: str) -> None:
    """Body of the process: export, or say why not and exit with status 1."""
    from benchmarks import ways

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own exporters, about themselves
            EXPORTS[kind](model, weights, image_shape, Path(graph))
    except PeerError as error:
        sys.exit(f"reason: {error}")
    except Exception as error:
        sys.exit(f"reason: {ways.reason(error)}")


def dynamo(model: str, weights: str, image_shape: Sequence[int], graph: Path) -> None:
    """Export by torch's documented default."""
    import torch

    example = torch.zeros(2, *image_shape)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(_module(model, weights), (example,), graph, dynamic_shapes=batch, input_names=["images"])


def legacy(model: str, weights: str, image_shape: Sequence[int], graph: Path) -> None:
    """Export by tracing, as optimum does."""
    import torch

    torch.onnx.export(
        _module(model, weights),
        (torch.zeros(2, *image_shape),),
        graph,
        dynamo=False,
        opset_version=18,
        input_names=["pixel_values"],
        dynamic_axes={"pixel_values": {0: "batch"}},
    )


def optimum(model: str, weights: str, image_shape: Sequence[int], graph: Path) -> None:
    """Export by tracing, then optimise by optimum at its level O3."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
    from transformers import ViTConfig

    transformer = next((m for m in _module(model, weights).modules() if hasattr(m, "blocks")), None)
    if transformer is None:
        raise PeerError("optimum needs the number of attention heads, and this backbone has no blocks to read it from")
    config = ViTConfig(hidden_size=transformer.embed_dim, num_attention_heads=transformer.blocks[0].attn.num_heads)
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.onnx"
        legacy(model, weights, image_shape, traced)
        optimizer = ORTOptimizer(onnx_model_path=[traced], config=config)
        optimizer.optimize(AutoOptimizationConfig.O3(), save_dir=graph.parent, file_suffix="")


def _module(model: str, weights: str) -> Any:
    from runtime import load_model

    return load_model(model, backend="eager", weights=weights, device="cpu").module


EXPORTS: dict[str, Callable[[str, str, Sequence[int], Path], None]] = {
    export.__name__: export for export in (dynamo, legacy, optimum)
}

if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
