"""Eager module -> ONNX graph, its weights in the model's shared pool."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from exporters.attention import WholeAttention, ensure_every_call_seen
from exporters.half.conversion import to_half
from exporters.images import Images
from exporters.int8.calibration import calibration_id
from exporters.int8.conversion import to_int8
from exporters.optimise import optimise
from exporters.pixels import take_pixels
from exporters.pool import Slice, WeightPool
from exporters.written_attention import ensure_fused, written_out
from runtime.errors import ExportError
from runtime.manifest import Form

# Opset 18 has LayerNormalization as one operator and runs on every onnxruntime in use; IR 10 likewise.
OPSET = 18
# Smaller tensors (shapes, scalars) stay inside the graph.
INLINE_BYTES = 1024


def export(
    module: nn.Module,
    example: torch.Tensor,
    outputs: Sequence[str],
    patch_size: int | None,
    *,
    whole_attention: bool = True,
) -> torch.onnx.ONNXProgram:
    """Return the exported program with a symbolic batch (and, with `patch_size`, symbolic height and width).

    With `whole_attention` every call of attention is one marker node, for `exporters.passes.attention` to lower.

    Raises:
        ExportError: torch could not export the module, or the attention of a Vision Transformer is no call.
    """
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if patch_size is not None:
        dynamic |= {2: patch_size * torch.export.Dim("h", min=2), 3: patch_size * torch.export.Dim("w", min=2)}
    try:
        with torch.no_grad(), _quiet(), WholeAttention(mark=whole_attention) as attention:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                input_names=["images"],
                output_names=list(outputs),
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx could not export it: {_cause(error)}") from error
    if program is None:
        raise ExportError("torch.onnx returned nothing.")
    if whole_attention:
        ensure_every_call_seen(program)
        ensure_fused(module, program.model, attention.left)
    _let_go(program)
    return program


def _let_go(program: torch.onnx.ONNXProgram) -> None:
    """Leave the weights to `program`: the exporter's rewrite rules hold the last graph that they saw for good."""
    held, program.model = program.model, program.model.clone()
    for value in held.graph.initializers.values():
        value.const_value = None


def _cause(error: BaseException) -> str:
    """Return what went wrong in the first place: around it torch wraps advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def derive(program: torch.onnx.ONNXProgram, form: Form, images: Images) -> tuple[ir.Model, dict[str, Any]]:
    """Return the program's graph in one of its forms, and what the manifest tells of how it was made.

    The program is left as it is; graphs of other forms share its weights.

    Raises:
        ExportError: The graph does not keep what it must (see `exporters.optimise`), or nothing of it fits int8.
        VerificationError: int8 loses too much on the calibration images.
    """
    model = program.model.clone()
    applied = optimise(model, dynamic=images.dynamic, target=form.target, precision=form.precision)
    facts: dict[str, Any] = {"passes": applied}
    if written := written_out(model):
        facts["attention_written_out"] = written
    if form.target == "cuda" and form.precision in ("fp16", "bf16"):
        facts["half"] = to_half(model, precision=form.precision, batches=images.verification())
    if form.precision == "int8":
        facts["int8"] = to_int8(model, images.calibration()) | {"calibration": calibration_id(images.folder)}
    if form.input == "uint8":
        take_pixels(model, images.facts)
    return model, facts


def write(model: ir.Model, pool: WeightPool, path: Path, metadata: dict[str, str]) -> list[str]:
    """Write a graph to `path` and its weights to the pool; return the weight files it reads."""
    model.metadata_props.update(metadata)
    values = model.graph.initializers.values()
    large = [v for v in values if v.const_value is not None and v.const_value.nbytes > INLINE_BYTES]
    slices = pool.place(_array(value) for value in large)
    for value, piece in zip(large, slices, strict=True):
        value.const_value = _stored(value, piece, path.parent)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return list(dict.fromkeys(piece.file for piece in slices))


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    tensor = value.const_value
    assert tensor is not None
    # Most are transposed views of torch's own weights, which torch makes contiguous several times faster than numpy.
    raw = getattr(tensor, "raw", None)
    return raw.detach().contiguous().numpy() if isinstance(raw, torch.Tensor) else np.asarray(tensor.numpy())


def _stored(value: ir.Value, piece: Slice, folder: Path) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        piece.file,
        piece.offset,
        piece.length,
        tensor.dtype,
        shape=cast(ir.Shape, tensor.shape),
        name=value.name or "",
        base_dir=folder,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
