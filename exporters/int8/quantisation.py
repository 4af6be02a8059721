"""Passes that make layers of a graph compute in int8: QuantizeLinear and DequantizeLinear around their inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.in_memory import array_of
from exporters.int8.layers import Group, Layer
from exporters.int8.recipes import Recipe, quantise_weights

# Where a normalisation's weight and bias are among its inputs.
NORMS = {
    "LayerNormalization": (1, 2),
    "SkipLayerNormalization": (2, 3),
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
}


def norm_of(group: Group) -> ir.Node | None:
    """Return the normalisation whose channels may be divided for the group, which alone reads it; else None."""
    node = group.source.producer()
    if node is None or node.op_type not in NORMS or node.outputs[0] is not group.source:
        return None
    readers = {id(layer.node) for layer in group.layers}
    alone = all(id(use.node) in readers and use.idx == 0 for use in group.source.uses())
    if not alone or group.source.is_graph_output():
        return None
    constants = [node.inputs[i] for i in NORMS[node.op_type] if i < len(node.inputs)]
    return node if all(v is not None and v.const_value is not None for v in constants) else None


def quantise(graph: ir.Graph, group: Group, recipe: Recipe) -> None:
    """Make the group compute in int8, statically: ranges are constants of the graph."""
    scaled = _divide(graph, group, recipe.divisors)
    first = group.layers[0].node
    step = [
        constant(graph, f"{group.key}_scale", np.array(recipe.scale)),
        constant(graph, f"{group.key}_zero_point", np.array(recipe.zero_point)),
    ]
    rounded = ir.node("QuantizeLinear", [scaled, *step])
    real = ir.node("DequantizeLinear", [rounded.outputs[0], *step])
    graph.insert_before(first, [rounded, real])
    for layer in group.layers:
        weights, scales = _int8_weights(layer, recipe.divisors)
        stored = _initializers(graph, layer, weights, scales)
        weight = ir.node("DequantizeLinear", stored, {"axis": 0 if layer.is_convolution else 1})
        graph.insert_before(layer.node, [weight])
        _feed(graph, layer, real.outputs[0], weight.outputs[0])


def quantise_dynamically(graph: ir.Graph, group: Group, divisors: NDArray[np.float32] | None) -> None:
    """Make the group compute in int8, its input's range taken from each batch as it comes. Not for convolutions."""
    scaled = _divide(graph, group, divisors)
    rounded = ir.node("DynamicQuantizeLinear", [scaled], num_outputs=3)
    graph.insert_before(group.layers[0].node, [rounded])
    values, scale, zero_point = rounded.outputs
    for layer in group.layers:
        weights, scales = _initializers(graph, layer, *_int8_weights(layer, divisors))
        # onnxruntime knows these four operators as one.
        product = ir.node("MatMulInteger", [values, weights, zero_point])
        cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
        steps = ir.node("Mul", [scale, scales])
        real = ir.node("Mul", [cast.outputs[0], steps.outputs[0]])
        graph.insert_before(layer.node, [product, cast, steps, real])
        _replace(graph, layer, real.outputs[0])


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Return a new initializer of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _divide(graph: ir.Graph, group: Group, divisors: NDArray[np.float32] | None) -> ir.Value:
    """Divide the group's channels, in the normalisation before it or by an operator of their own; return the result."""
    if divisors is None:
        return group.source
    norm = norm_of(group)
    if norm is None:
        factors = constant(graph, f"{group.key}_factors", 1 / divisors)
        product = ir.node("Mul", [group.source, factors])
        graph.insert_before(group.layers[0].node, [product])
        return product.outputs[0]
    for index in NORMS[norm.op_type]:
        if index < len(norm.inputs):
            value = norm.inputs[index]
            assert value is not None
            assert value.const_value is not None
            divided = array_of(value.const_value) / divisors
            norm.replace_input_with(index, constant(graph, f"{group.key}_{value.name}", divided))
    return group.source


def _int8_weights(layer: Layer, divisors: NDArray[np.float32] | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the weights in the layout that the operator reads, and one scale for each output channel."""
    if not layer.is_convolution:
        matrix = layer.matrix()
        return quantise_weights(matrix if divisors is None else matrix * divisors[:, None])
    tensor = layer.node.inputs[1].const_value  # type: ignore[union-attr]
    assert tensor is not None
    kernel = array_of(tensor)
    columns, scales = quantise_weights(kernel.reshape(len(kernel), -1).T)
    return np.ascontiguousarray(columns.T).reshape(kernel.shape), scales


def _initializers(
    graph: ir.Graph, layer: Layer, weights: NDArray[np.int8], scales: NDArray[np.float32]
) -> Sequence[ir.Value]:
    name = layer.node.outputs[0].name  # a weight may be read by several layers
    return constant(graph, f"{name}_weight", weights), constant(graph, f"{name}_weight_scale", scales)


def _feed(graph: ir.Graph, layer: Layer, source: ir.Value, weight: ir.Value) -> None:
    if layer.node.op_type == "Gemm":
        product = ir.node("MatMul", [source, weight])
        graph.insert_before(layer.node, [product])
        _replace(graph, layer, product.outputs[0])
        return
    layer.node.replace_input_with(0, source)
    layer.node.replace_input_with(1, weight)


def _replace(graph: ir.Graph, layer: Layer, product: ir.Value) -> None:
    """Put `product` in the place of the layer's output; the bias of a Gemm becomes an Add."""
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if bias is not None:
        added = ir.node("Add", [product, bias])
        graph.insert_before(layer.node, [added])
        product = added.outputs[0]
    old = layer.node.outputs[0]
    product.name, product.shape, product.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, product, replace_graph_outputs=True)
    graph.remove(layer.node, safe=True)
