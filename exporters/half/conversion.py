"""A float32 graph computed in fp16 or bf16, but for the nodes that need float32."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from exporters.half.casts import compute_in_half
from exporters.half.islands import MARGIN, Reason, find_islands, float_nodes
from exporters.half.ranges import measure
from exporters.inputs import Batch


def to_half(model: ir.Model, *, precision: str, batches: Sequence[Batch]) -> dict[str, Any]:
    """Compute the graph in 16 bits, in place; inputs, outputs and what needs it stay float32.

    Weights are rounded to nearest from the float32 data, which is left as it is.

    Args:
        model: A float32 graph, optimised for its target, with one input.
        precision: "fp16" or "bf16".
        batches: Images that the range of every value is measured on.

    Returns:
        What was done, as JSON: how many nodes compute in 16 bits; which stay in float32, by operator and reason, with
        the value and magnitude that decided it; the margin kept; the largest value measured.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    magnitudes = measure(model, batches)
    islands = find_islands(model, magnitudes, precision)
    nodes = [node for node in float_nodes(model, magnitudes) if node not in islands]
    report = _report(nodes, islands, magnitudes)
    compute_in_half(model, set(nodes), set(magnitudes), precision)
    return {"precision": precision} | report


def _report(
    nodes: Sequence[ir.Node], islands: Mapping[ir.Node, Reason], magnitudes: Mapping[str, float]
) -> dict[str, Any]:
    largest = max(magnitudes, key=lambda name: magnitudes[name])
    groups: dict[tuple[str, str], list[Reason]] = {}
    for node, reason in islands.items():
        groups.setdefault((node.op_type, reason.why), []).append(reason)
    return {
        "nodes": len(nodes),
        "float32": [_entry(*group, reasons) for group, reasons in sorted(groups.items())],
        "margin": MARGIN,
        "largest": {"value": largest, "magnitude": _round(magnitudes[largest])},
    }


def _entry(operator: str, why: str, reasons: Sequence[Reason]) -> dict[str, Any]:
    worst = max(reasons, key=lambda reason: reason.magnitude)
    entry: dict[str, Any] = {"operator": operator, "nodes": len(reasons), "reason": why}
    return entry | ({"value": worst.value, "magnitude": _round(worst.magnitude)} if worst.value else {})


def _round(magnitude: float) -> float:
    return float(f"{magnitude:.3g}")
