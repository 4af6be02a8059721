"""Which nodes of a graph stay in float32 when the rest is computed in 16 bits, and why."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from exporters.half.kernels import KERNELS, LIGHT, SHAPES
from exporters.in_memory import array_of

DTYPES: dict[str, Any] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# Images of production are not those that were measured, so a value must stay this many times below what overflows, and
# its largest entry as far above what loses digits. Massive activations hardly depend on the image (arXiv:2402.17762).
MARGIN = 4.0


@dataclass(frozen=True)
class Reason:
    """Why a node stays in float32.

    Attributes:
        why: "operator" (no sound kernel in 16 bits), "range" (a value is too large or too small), "weight" (a constant
            is), "constant" (computed from weights or sizes alone) or "between" (its neighbours are in float32).
        value: The value that decided it, or nothing.
        magnitude: The largest magnitude in that value, or 0.
    """

    why: str
    value: str = ""
    magnitude: float = 0.0


def find_islands(model: ir.Model, magnitudes: Mapping[str, float], precision: str) -> dict[ir.Node, Reason]:
    """Return the nodes with float32 values that must stay in float32.

    Args:
        model: A float32 graph.
        magnitudes: What `exporters.ranges.measure` found: every float32 value that is computed.
        precision: "fp16" or "bf16".
    """
    islands = {}
    moving = _from_images(model, magnitudes)
    weights = _unfit_weights(model, precision)
    for node in float_nodes(model, magnitudes):
        reason: Reason | None
        if not _among(node.inputs, moving):
            reason = Reason("constant")
        elif not (_among(node.outputs, moving) and _has_kernel(node, precision)):
            reason = Reason("operator")
        else:
            reason = _unfit(node, magnitudes, weights, precision)
        if reason is not None:
            islands[node] = reason
    return islands | dict.fromkeys(_between(model, magnitudes, islands), Reason("between"))


def float_nodes(model: ir.Model, floats: Collection[str]) -> list[ir.Node]:
    """Return the nodes of the main graph that read or compute the numbers of a float32 value."""
    nodes = [node for node in model.graph if node.op_type not in SHAPES]
    return [node for node in nodes if float_inputs(node, floats) or _among(node.outputs, floats)]


def float_inputs(node: ir.Node, floats: Collection[str]) -> list[ir.Value]:
    """Return the float32 values that a node reads, computed ones and constants."""
    return [v for v in node.inputs if v is not None and (str(v.name) in floats or _is_float_constant(v))]


def _among(values: Iterable[ir.Value | None], names: Collection[str]) -> list[str]:
    return [str(v.name) for v in values if v is not None and str(v.name) in names]


def _is_float_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT


def _from_images(model: ir.Model, floats: Collection[str]) -> set[str]:
    """Return the names of the values that the images flow into as numbers, not merely as sizes."""
    moving = set(_among(model.graph.inputs, floats))
    for node in model.graph:
        if node.op_type not in SHAPES and _among(node.inputs, moving):
            moving.update(_among(node.outputs, floats))
    return moving


def _has_kernel(node: ir.Node, precision: str) -> bool:
    return node.op_type in KERNELS[precision] and node.domain in ("", "com.microsoft")


def _unfit(
    node: ir.Node, magnitudes: Mapping[str, float], weights: Mapping[str, float], precision: str
) -> Reason | None:
    """Return the value of a node that does not fit into 16 bits, if there is one: the largest."""
    constants = [Reason("weight", name, weights[name]) for name in _among(node.inputs, weights)]
    computed = [
        Reason("range", name, magnitudes[name])
        for name in _among([*node.inputs, *node.outputs], magnitudes)
        if not _fits(magnitudes[name], precision)
    ]
    return max(constants or computed, key=lambda reason: reason.magnitude, default=None)


def _fits(magnitude: float, precision: str) -> bool:
    limits = _limits(DTYPES[precision])
    return magnitude == 0 or float(limits.smallest_normal) * MARGIN <= magnitude <= float(limits.max) / MARGIN


def _unfit_weights(model: ir.Model, precision: str) -> dict[str, float]:
    """Return the constants that lose more than digits: they overflow, or vanish, with the largest magnitude of each."""
    found = {}
    for value in model.graph.initializers.values():
        if _is_float_constant(value):
            assert value.const_value is not None
            array = array_of(value.const_value)
            if not _keeps_its_digits(array, DTYPES[precision]):
                found[str(value.name)] = float(np.abs(array[np.isfinite(array)]).max())
    return found


def _keeps_its_digits(array: np.ndarray[Any, Any], dtype: Any) -> bool:
    finite = array[np.isfinite(array)]
    rounded = narrow(finite, dtype).astype(np.float32)
    # Normal numbers are rounded by half of eps at most.
    limit = float(_limits(dtype).eps) * np.linalg.norm(finite.astype(np.float64))
    return bool(np.isfinite(rounded).all() and np.linalg.norm((rounded - finite).astype(np.float64)) <= limit)


def _limits(dtype: Any) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def narrow(array: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Return `array` rounded to nearest in `dtype`; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _between(model: ir.Model, floats: Mapping[str, float], islands: Mapping[ir.Node, Reason]) -> list[ir.Node]:
    """Return the light nodes whose neighbours are all in float32, or light and between such themselves."""
    light = [n for n in float_nodes(model, floats) if n not in islands and n.op_type in LIGHT]
    inside = set(light)
    while True:
        wide = inside | set(islands)
        staying = {n for n in inside if all(_is_wide(m, wide) for m in _neighbours(n, floats))}
        if staying == inside:
            return [n for n in light if n in inside]
        inside = staying


def _neighbours(node: ir.Node, floats: Mapping[str, float]) -> list[ir.Node | None]:
    before = [v.producer() for v in node.inputs if v is not None and str(v.name) in floats]
    return [*before, *(user for v in node.outputs for user in v.consumers() if user.op_type not in SHAPES)]


def _is_wide(node: ir.Node | None, wide: set[ir.Node]) -> bool:
    return node is None or node in wide  # no node: an input of the graph
