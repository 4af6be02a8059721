"""Which layers lose most by int8: each alone is rounded in an otherwise exact graph."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.in_memory import open_runner
from exporters.int8.layers import Group, find_groups
from exporters.int8.quantisation import constant
from exporters.int8.recipes import Recipe
from exporters.parity import compare

Batch = NDArray[np.float32]
Outputs = list[NDArray[np.float32]]


def measure_sensitivity(model: ir.Model, recipes: Sequence[Recipe], images: Sequence[Batch]) -> list[float]:
    """Return, for each group of layers, the smallest cosine of an image when only this group's input is rounded.

    One session serves for all: a second graph input switches the rounding of each group on. Weights are not rounded;
    with a scale for each channel they lose little.
    """
    probe = model.clone()
    _add_switches(probe.graph, recipes)
    runner = open_runner(probe, list(probe.graph.outputs), optimised=False)
    switches = np.eye(len(recipes) + 1, len(recipes), k=-1, dtype=np.float32)  # the first row is all off
    outputs = [[runner(image, switch) for image in images] for switch in switches]
    return [smallest_cosine(outputs[0], got) for got in outputs[1:]]


def smallest_cosine(expected: list[Outputs], got: list[Outputs]) -> float:
    """Return the smallest cosine of an image over all outputs; NaN counts as -1."""
    names = [f"output {i}" for i in range(len(expected[0]))]
    return float(min(np.nan_to_num(parity.min_cosine, nan=-1.0) for parity in compare(names, expected, got)))


def _add_switches(graph: ir.Graph, recipes: Sequence[Recipe]) -> None:
    switches = ir.Value(name="switches", shape=ir.Shape([len(recipes)]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(switches)
    for index, (group, recipe) in enumerate(zip(find_groups(graph), recipes, strict=True)):
        _add_switch(graph, group, recipe, (switches, index))


def _add_switch(graph: ir.Graph, group: Group, recipe: Recipe, switch: tuple[ir.Value, int]) -> None:
    values, index = switch
    nodes: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op_type, inputs))
        return nodes[-1].outputs[0]

    def number(name: str, array: object) -> ir.Value:
        return constant(graph, f"{group.key}_probe_{name}", np.array(array))

    step = number("scale", recipe.scale), number("zero_point", recipe.zero_point)
    divisors = None if recipe.divisors is None else number("divisors", recipe.divisors)
    scaled = group.source if divisors is None else add("Div", group.source, divisors)
    real = add("DequantizeLinear", add("QuantizeLinear", scaled, *step), *step)
    rounded = real if divisors is None else add("Mul", real, divisors)
    on = add("Gather", values, number("index", np.int64(index)))
    result = add("Add", group.source, add("Mul", add("Sub", rounded, group.source), on))
    graph.insert_before(group.layers[0].node, nodes)
    for layer in group.layers:
        layer.node.replace_input_with(0, result)
