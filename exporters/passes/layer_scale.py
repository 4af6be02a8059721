"""LayerScale folded into the projection before it, where weights are stored anew anyway: in lower precisions."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.passes.matching import add_constant, constant, is_vector, only_use, other, producer, replace

# Rounding to float16 costs 2.8e-4 of a matrix of ordinary size; where much of it falls below the normal numbers, more.
_ROUNDING = 4e-4


def fold_layer_scale(model: ir.Model) -> int:
    """Multiply the scale after a projection into its weight and bias; return how many.

    In float32 it would make a second copy of the projections. A scale so small that float16 could not hold the
    product's digits stays where it is.
    """
    return sum(_fold(model, node) for node in list(model.graph) if node.op_type == "Mul")


def _fold(model: ir.Model, scaling: ir.Node) -> bool:
    gamma = next((value for value in scaling.inputs if is_vector(value)), None)
    product = other(scaling, gamma) if gamma is not None else None
    if gamma is None or product is None or not only_use(product):
        return False
    add = producer(product, "Add")
    bias = next((value for value in add.inputs if is_vector(value)), None) if add else None
    matmul = producer(other(add, bias) if add is not None and bias is not None else product, "MatMul")
    weight = constant(matmul.inputs[1]) if matmul else None
    scale = constant(gamma)
    if matmul is None or weight is None or scale is None or weight.ndim != 2 or not only_use(matmul.outputs[0]):
        return False
    folded = np.asarray(weight, np.float32) * np.asarray(scale, np.float32)
    if not _fits_float16(folded):
        return False
    stored = add_constant(model, f"{scaling.name}_weight", folded)
    made = ir.node("MatMul", [matmul.inputs[0], stored], name=f"{scaling.name}_folded")
    made.outputs[0].name, made.outputs[0].type = f"{scaling.name}_product", product.type
    made.outputs[0].shape = product.shape
    nodes = [made]
    if bias is not None:
        shift = np.asarray(constant(bias), np.float32) * np.asarray(scale, np.float32)
        shifted = add_constant(model, f"{scaling.name}_bias", shift)
        nodes.append(ir.node("Add", [made.outputs[0], shifted], name=f"{scaling.name}_sum"))
    replace(model, scaling.outputs[0], nodes, nodes[-1].outputs[0])
    return True


def _fits_float16(weight: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        error = weight.astype(np.float16).astype(np.float32) - weight
    return bool(np.linalg.norm(error) <= _ROUNDING * np.linalg.norm(weight))
