"""The layers of a graph that int8 can compute: products of what moves with a constant matrix or kernel."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.in_memory import array_of


@dataclass(frozen=True)
class Layer:
    """One MatMul, Gemm or Conv with constant weights.

    Attributes:
        node: The operator.
        name: What people know it by, as far as the graph tells.
    """

    node: ir.Node
    name: str

    @property
    def is_convolution(self) -> bool:
        """Whether its channels are dimension 1 of its input, not the last."""
        return self.node.op_type == "Conv"

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights as [inputs, outputs]; of a kernel, every tap is a column."""
        tensor = self.node.inputs[1].const_value  # type: ignore[union-attr]
        assert tensor is not None
        weight: NDArray[np.float32] = array_of(tensor)
        if self.is_convolution:
            return weight.swapaxes(0, 1).reshape(weight.shape[1], -1)
        return weight.T if self.node.attributes.get_int("transB", 0) else weight


@dataclass(frozen=True)
class Group:
    """The layers that read one value: it is quantised once for all of them."""

    source: ir.Value
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Return the names of its layers."""
        return " + ".join(layer.name for layer in self.layers)

    @property
    def key(self) -> str:
        """Return what the names of the group's constants begin with."""
        return f"{self.source.name}_{'map' if self.is_convolution else 'rows'}"

    @property
    def is_convolution(self) -> bool:
        """Whether channels are dimension 1."""
        return self.layers[0].is_convolution

    def rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the layers read as [rows, channels]."""
        moved = np.moveaxis(values, 1, -1) if self.is_convolution else values
        return moved.reshape(-1, moved.shape[-1])


def find_groups(graph: ir.Graph) -> list[Group]:
    """Return the layers that int8 can compute, in the graph's order, by the value they read.

    What reads the images themselves stays as it is: it is little work, and a fixed range would clip unusual pixels.
    Grouped convolutions stay, too: they wait for memory, not for arithmetic.
    """
    found: dict[tuple[str, bool], tuple[ir.Value, list[Layer]]] = {}
    for node in graph:
        if _is_layer(node):
            source = node.inputs[0]
            assert source is not None
            layer = Layer(node, _name(node))
            found.setdefault((str(source.name), layer.is_convolution), (source, []))[1].append(layer)
    return [Group(source, tuple(layers)) for source, layers in found.values()]


def _is_layer(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return False
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or source.is_graph_input() or source.const_value is not None or weight is None:
        return False
    tensor = weight.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or not weight.is_initializer():
        return False
    if node.op_type == "Conv":
        return len(tensor.shape) == 4 and node.attributes.get_int("group", 1) == 1
    return len(tensor.shape) == 2 and (node.op_type == "MatMul" or _is_plain(node))


def _is_plain(gemm: ir.Node) -> bool:
    factors = (gemm.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return not gemm.attributes.get_int("transA", 0) and all(factor == 1.0 for factor in factors)


def _name(node: ir.Node) -> str:
    """Return the module's name, from its weight or, where the exporter renamed that, from its bias."""
    users: Iterable[Any] = [use.node for use in node.outputs[0].uses()]
    nearby = [*node.inputs[1:], *(value for user in users for value in user.inputs)]
    for value in nearby:
        for ending in (".weight", ".bias"):
            if value is not None and value.is_initializer() and str(value.name).endswith(ending):
                return str(value.name).removesuffix(ending)
    return str(node.name or node.outputs[0].name)
