"""The uint8 input contract: images come as they are, and are normalised inside the graph."""

import numpy as np
import onnx_ir as ir

from runtime.facts import Preprocessing


def take_pixels(model: ir.Model, facts: Preprocessing) -> None:
    """Replace the float32 input [B, C, H, W] by uint8 images [B, H, W, C], normalised as `preprocess` does.

    The same operations in the same order, so that not a bit differs from images normalised beforehand.
    """
    normalised = model.graph.inputs[0]
    assert normalised.shape is not None
    batch, channels, *sides = normalised.shape
    images = ir.Value(
        name=normalised.name, shape=ir.Shape([batch, *sides, channels]), type=ir.TensorType(ir.DataType.UINT8)
    )
    made = [ir.node("Cast", [images], {"to": ir.DataType.FLOAT}, name="pixels_float")]
    for kind, name, values in (("Div", "range", [255.0]), ("Sub", "mean", facts.mean), ("Div", "std", facts.std)):
        constant = _constant(model, f"pixels_{name}", values)
        made.append(ir.node(kind, [made[-1].outputs[0], constant], name=f"pixels_{name}"))
    made.append(ir.node("Transpose", [made[-1].outputs[0]], {"perm": [0, 3, 1, 2]}, name="pixels_nchw"))
    normalised.name = "normalised_images"
    model.graph.inputs[0] = images
    ir.convenience.replace_all_uses_with(normalised, made[-1].outputs[0])
    first = model.graph[0]
    model.graph.insert_before(first, made)
    _name(made, normalised)


def _constant(model: ir.Model, name: str, values: tuple[float, ...] | list[float] | None) -> ir.Value:
    assert values is not None  # Request refuses input="uint8" where no mean and std are declared
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(values, np.float32), name=name))
    value.shape, value.type = ir.Shape([len(values)]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(value)
    return value


def _name(nodes: list[ir.Node], normalised: ir.Value) -> None:
    """Give what the nodes compute the type of the input that they replace; only the last has its shape."""
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].type = normalised.type
    nodes[-1].outputs[0].shape = normalised.shape
