"""Computing nodes of a float32 graph in 16 bits: their weights rounded, casts where they meet float32."""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.half.islands import DTYPES, float_inputs, narrow
from exporters.half.kernels import SHAPES
from exporters.in_memory import array_of


def compute_in_half(model: ir.Model, nodes: Collection[ir.Node], floats: Collection[str], precision: str) -> None:
    """Compute `nodes` in 16 bits, in place; everything else, and the inputs and outputs of the graph, stay float32.

    Args:
        model: A float32 graph.
        nodes: Nodes of its main graph with kernels in 16 bits.
        floats: The names of all float32 values that are computed.
        precision: "fp16" or "bf16".
    """
    _Narrowing(model, floats, precision).narrow(nodes)
    RemoveUnusedNodesPass()(model)  # the constants that are read in 16 bits only


class _Narrowing:
    """One graph on its way to 16 bits: the casts and the rounded constants made so far."""

    def __init__(self, model: ir.Model, floats: Collection[str], precision: str) -> None:
        self._graph = model.graph
        self._floats = floats
        self._precision = precision
        self._dtype = ir.DataType.from_numpy(DTYPES[precision])
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def narrow(self, nodes: Collection[ir.Node]) -> None:
        computed = {v for node in nodes for v in node.outputs if v.name in self._floats}
        for node in list(self._graph):
            if node in nodes:
                self._feed(node, computed)
        for value in computed:
            value.type = ir.TensorType(self._dtype)  # a new one: clones of a graph share theirs
        for value in sorted(computed, key=lambda v: str(v.name)):
            self._widen(value, nodes)

    def _feed(self, node: ir.Node, computed: Collection[ir.Value]) -> None:
        wanted = float_inputs(node, self._floats)
        for position, value in enumerate(node.inputs):
            if value in wanted and value not in computed:
                assert value is not None
                made = self._round(value) if value.is_initializer() else self._cast(value, self._dtype)
                node.replace_input_with(position, made)

    def _round(self, value: ir.Value) -> ir.Value:
        """Return the constant in 16 bits, under a name of its own: other nodes may read it in float32."""
        key = (value, self._dtype)
        if key not in self._made:
            assert value.const_value is not None
            name = f"{value.name}_{self._precision}"
            array = narrow(array_of(value.const_value), DTYPES[self._precision])
            tensor = ir.tensor(array, name=name)
            rounded = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._dtype), const_value=tensor)
            self._graph.register_initializer(rounded)
            self._made[key] = rounded
        return self._made[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            made = _name_of(value, dtype)
            cast = ir.node("Cast", [value], {"to": dtype}, name=f"{made}_cast")
            cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = made, value.shape, dtype
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], cast)
            else:
                self._graph.insert_after(producer, cast)
            self._made[key] = cast.outputs[0]
        return self._made[key]

    def _widen(self, value: ir.Value, nodes: Collection[ir.Node]) -> None:
        for user, position in list(value.uses()):
            if user not in nodes and user.op_type not in SHAPES:
                user.replace_input_with(position, self._cast(value, ir.DataType.FLOAT))
        for position, output in enumerate(list(self._graph.outputs)):
            if output is value:
                name, value.name = value.name, _name_of(value, self._dtype)
                self._graph.outputs[position] = self._cast(value, ir.DataType.FLOAT)
                self._graph.outputs[position].name = name


def _name_of(value: ir.Value, dtype: ir.DataType) -> str:
    return f"{value.name}_{dtype.name.lower()}"
