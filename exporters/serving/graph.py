"""A look at an ONNX file, without its weight data."""

from pathlib import Path

from exporters.serving.config import GraphFacts


def look_at(path: Path) -> GraphFacts:
    """Return what the graph in a file is made of."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    opsets = sorted((opset.domain, opset.version) for opset in model.opset_import)
    needs = [f"ONNX IR {model.ir_version}", *(f"{domain or 'opset'} {version}" for domain, version in opsets)]
    own = {node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    return GraphFacts(", ".join(needs), tuple(sorted(own)))
