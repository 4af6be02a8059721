"""Where an exported graph leaves the eager backbone: the first value that both have and do not agree on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from exporters import to_onnx
from exporters.parity import relative_rms
from exporters.reference import load_eager
from runtime.request import Request

# Well above what one operator's rounding gives, well below what a wrong one does.
LIMIT = 1e-4


def first_diverging_node(request: Request, graph: Path, outputs: Sequence[str], example: Tensor) -> str | None:
    """Return the first node of `graph` whose value differs from the eager program's value of the same name.

    The eager program runs step by step as torch.export saw it; the exporter names values after its steps.
    """
    module = load_eager(request).module
    patch = request.spec.patch_size if request.size == "dynamic" else None
    program = to_onnx.export(module, example, outputs, patch, whole_attention=False)  # torch cannot run a marker
    exported = program.exported_program
    if exported is None:
        return None
    images = example[:1]
    recorder = _Recorder(exported.module())
    with torch.no_grad():
        recorder.run(images)
    expected = recorder.values
    model = onnx.load(graph, load_external_data=False)
    shared = [o for node in model.graph.node for o in node.output if o in expected]
    producers = {o: node for node in model.graph.node for o in node.output}
    for name, got in zip(shared, _run(model, graph, shared, images.numpy()), strict=True):
        reference = expected[name].numpy()
        if got.shape != reference.shape or not relative_rms(reference, got) <= LIMIT:
            return f"{producers[name].name} ({producers[name].op_type})"
    return None


class _Recorder(fx.Interpreter):
    """Runs the exported program and keeps every floating-point value under its name."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one step and keep its value."""
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach()
        return value


def _run(model: onnx.ModelProto, graph: Path, names: list[str], images: np.ndarray[Any, Any]) -> list[Any]:
    """Run the graph with every shared value as an output. It must lie beside its weight data."""
    import onnxruntime

    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    probe = graph.with_suffix(".probe")
    probe.write_bytes(model.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(str(probe), providers=["CPUExecutionProvider"])
        return list(session.run(names, {"images": images}))
    finally:
        probe.unlink()
