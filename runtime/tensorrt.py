"""Where TensorRT keeps the engines it builds for an artifact, and how it is asked to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TENSORRT = "TensorrtExecutionProvider"
# The domain of the operators that are onnxruntime's own, as a graph's file spells it.
_OWN = b"com.microsoft"


def engine_key(graph: str, machine: Mapping[str, str | None]) -> str:
    """Return the name of the folder for the engines of one artifact on one kind of machine.

    onnxruntime names engines after the structure of a graph: two backbones of one architecture would share them, and
    an engine outlives the TensorRT that can read it.

    Args:
        graph: SHA-256 of the graph; it names its weight data by their content.
        machine: What an engine is only good for: names and versions of GPU, driver and libraries.
    """
    text = json.dumps({"graph": graph, **machine}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def takes_profiles(graph: Path) -> bool:
    """Return whether TensorRT may be told what batches come to the graph in a file.

    Operators of onnxruntime's own it leaves to CUDA. It then takes the graph in pieces, and onnxruntime refuses
    profiles that leave out the inputs of a piece.
    """
    return _OWN not in graph.read_bytes()


def engine_options(
    folder: Path, index: int, name: str, image: Sequence[int], batch_sizes: Sequence[int] | None
) -> dict[str, Any]:
    """Return the options of TensorRT's provider.

    With batch sizes one engine is built for all of them. Without, onnxruntime builds a new one whenever a batch is
    larger or smaller than any before it.

    Args:
        folder: Where engines are kept.
        index: Of the GPU.
        name: Name of the graph's input.
        image: Shape of one image as the graph takes it.
        batch_sizes: The batches that will come, ascending.
    """
    options = {
        "device_id": index,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
    if batch_sizes is None:
        return options

    def shape(batch: int) -> str:
        return f"{name}:{'x'.join(map(str, (batch, *image)))}"

    return options | {
        "trt_profile_min_shapes": shape(batch_sizes[0]),
        "trt_profile_opt_shapes": shape(batch_sizes[-1]),
        "trt_profile_max_shapes": shape(batch_sizes[-1]),
    }
