"""Pass: bicubic resizing of images as two matrix products with torch's own coefficients.

Both torch and onnxruntime place samples in float32 and round differently: on images of strong contrast the results are
1e-5 apart (CrossViT, which resizes the images for its second branch). A resize between fixed sizes is linear and
separable, so torch itself says what its matrices are.
"""

import onnx_ir as ir
import torch
import torch.nn.functional as F


def expand_cubic_resize(model: ir.Model) -> bool:
    """Ensure that no bicubic Resize between fixed sizes of height and width is left.

    Requires inferred shapes. Antialiased resizes are left alone.

    Returns:
        Whether anything was changed.
    """
    nodes = [node for node in model.graph if node.op_type == "Resize" and _sides(node) is not None]
    for node in nodes:
        _expand(model.graph, node)
    return bool(nodes)


def _sides(node: ir.Node) -> tuple[int, int, int, int] | None:
    """Return height and width before and after a bicubic Resize; `None` for any other node."""
    images, resized = node.inputs[0], node.outputs[0]
    mode = node.attributes.get_string("mode", "nearest")
    if mode != "cubic" or node.attributes.get_int("antialias", False) or images is None:
        return None
    if images.shape is None or resized.shape is None or len(images.shape) != 4:
        return None
    sides = (*images.shape[2:], *resized.shape[2:])
    height, width, new_height, new_width = (side if isinstance(side, int) else 0 for side in sides)
    return (height, width, new_height, new_width) if height and width and new_height and new_width else None


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    sides = _sides(node)
    assert sides is not None
    height, width, new_height, new_width = sides
    corners = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
    old = node.outputs[0]
    across = _constant(graph, f"{old.name}_columns", _matrix(width, new_width, corners).t().contiguous())
    down = _constant(graph, f"{old.name}_rows", _matrix(height, new_height, corners))
    first = ir.node("MatMul", [node.inputs[0], across])
    second = ir.node("MatMul", [down, first.outputs[0]])
    second.outputs[0].shape, second.outputs[0].type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [first, second], [old], [second.outputs[0]])


def _matrix(size: int, new_size: int, corners: bool) -> torch.Tensor:
    """Return the matrix [new_size, size] that torch's bicubic interpolation multiplies a column with."""
    identity = torch.eye(size)[None, None]
    return F.interpolate(identity, size=(new_size, size), mode="bicubic", align_corners=corners)[0, 0]


def _constant(graph: ir.Graph, name: str, value: torch.Tensor) -> ir.Value:
    constant = ir.val(name, const_value=ir.tensor(value.numpy(), name=name))
    graph.register_initializer(constant)
    return constant
