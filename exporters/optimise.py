"""Passes over an exported ONNX graph. Each says what it ensures; a graph that does not keep it is refused."""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.attention import DOMAIN, MARKER
from exporters.passes.activations import fuse_gelu, fuse_silu
from exporters.passes.attention import fuse_attention
from exporters.passes.copies import drop_copies
from exporters.passes.cubic import expand_cubic_resize
from exporters.passes.layer_scale import fold_layer_scale
from exporters.passes.layout import cancel_transposes
from exporters.passes.matching import MICROSOFT
from exporters.passes.normalisation import fuse_skip_normalisation
from exporters.passes.packed_attention import pack_attention
from exporters.passes.registers import pad_for_registers
from exporters.passes.statistics import normalise_by_rows, reduce_by_rows
from exporters.passes.tokens import compute_read_token_only, pad_for_prefix_tokens
from runtime.errors import ExportError

PRODUCER = "backbone-runtime"


def optimise(model: ir.Model, *, dynamic: bool, target: str = "cpu", precision: str = "fp32") -> dict[str, int]:
    """Run every pass in place, check what the graph must keep, and return how often each pass applied.

    Args:
        model: The exported model.
        dynamic: Whether height and width are symbolic.
        target: `cpu` or `cuda`. A fused residual norm is slower than its parts on onnxruntime's CPU provider, attention
            with its projection has no flash kernel on CUDA; all else serves both (see benchmarks/passes.py).
        precision: In which the weights will be stored; float32 weights stay as they are, for other graphs share them.
            int8 quantises projections of their own.

    Raises:
        ExportError: The batch became static, a fixed-size graph still resizes something, or attention is not fused.
    """
    reduce_by_rows(model)
    normalise_by_rows(model)
    if not dynamic:
        expand_cubic_resize(model)
    marked = sum((node.domain, node.op_type) == (DOMAIN, MARKER) for node in model.graph.all_nodes())
    applied = {
        "copies": drop_copies(model),
        "attention": fuse_attention(model),
        "transposes": _until_none(model, cancel_transposes),
        "layer_scale": fold_layer_scale(model) if precision != "fp32" else 0,
        "gelu": fuse_gelu(model),
        "silu": fuse_silu(model),
        "prefix_tokens": pad_for_prefix_tokens(model),
        "registers": pad_for_registers(model),
        "skip_normalisation": fuse_skip_normalisation(model) if target == "cuda" else 0,
        "read_token": _sweep(model, compute_read_token_only),
        "packed_attention": _sweep(model, pack_attention) if target == "cpu" and precision != "int8" else 0,
    }
    RemoveUnusedNodesPass()(model)
    drop_traces(model)
    ensure_symbolic_batch(model)
    ensure_whole_attention(model, marked)
    if not dynamic:
        ensure_no_resize(model)
    return {name: count for name, count in applied.items() if count}


def _sweep(model: ir.Model, apply: Callable[[ir.Model], int]) -> int:
    """Run a pass on a graph in which every value has a reader: it looks at who reads what."""
    RemoveUnusedNodesPass()(model)
    return apply(model)


def _until_none(model: ir.Model, apply: Callable[[ir.Model], int]) -> int:
    """Run a pass until it finds nothing more; return how often it applied in all."""
    total = 0
    while count := _sweep(model, apply):
        total += count
    return total


def ensure_whole_attention(model: ir.Model, marked: int) -> None:
    """Raise unless each of the `marked` calls of attention is one node of the graph."""
    whole = {(MICROSOFT, "MultiHeadAttention"), (MICROSOFT, "Attention")}
    fused = sum((node.domain, node.op_type) in whole for node in model.graph.all_nodes())
    if fused < marked:
        raise ExportError(f"Of {marked} calls of attention only {fused} are one operator in the graph.")


def drop_traces(model: ir.Model) -> bool:
    """Ensure that the model tells nothing about where and how it was traced: no stack traces, no paths.

    Returns:
        Whether anything was removed.
    """
    removed = False
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        removed |= _clear(graph)
        for node in graph.all_nodes():
            removed |= _clear(node)
            for output in node.outputs:
                removed |= _clear(output)
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        removed |= _clear(value)
    removed |= _clear(model)
    model.producer_name, model.producer_version, model.graph.name = PRODUCER, None, "backbone"
    return removed


def _clear(item: ir.Model | ir.Graph | ir.Function | ir.Node | ir.Value) -> bool:
    had = bool(item.metadata_props) or bool(item.doc_string)
    item.metadata_props.clear()
    item.doc_string = None
    return had


def ensure_symbolic_batch(model: ir.Model) -> None:
    """Raise unless the first dimension of every input and output is symbolic."""
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
            raise ExportError(
                f"{value.name} has shape {value.shape}: its batch dimension became static. The module decides "
                "something by the batch size; write it so that any batch works."
            )


def ensure_no_resize(model: ir.Model) -> None:
    """Raise if a fixed-size graph still resizes a constant: its position embedding was not baked in.

    What is computed from the images may be resized: some backbones join scales that way.
    """
    moving = _from_images(model)
    resizes = [
        node.name for node in model.graph.all_nodes() if node.op_type == "Resize" and node.inputs[0] not in moving
    ]
    if resizes:
        raise ExportError(
            f"The graph for a fixed image size still holds Resize ({', '.join(map(str, resizes[:3]))}). "
            "Resample the position embedding once, when the module is built for its image size."
        )


def _from_images(model: ir.Model) -> set[ir.Value | None]:
    """Return every value that depends on the graph's inputs."""
    moving: set[ir.Value | None] = set(model.graph.inputs)
    for node in model.graph.all_nodes():  # in an order in which values come before their use
        # A function's or subgraph's own inputs are not followed: what is in there counts as constant.
        if any(value in moving for value in node.inputs if value is not None):
            moving.update(node.outputs)
    return moving
