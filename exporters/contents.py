"""What is inside a published graph, as JSON values: read off the file itself, its weight data untouched."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.artifacts import Store
from runtime.backends.pt2_package import NEEDS
from runtime.backends.weight_table import TABLE
from runtime.errors import ArtifactCorruptError
from runtime.hub import first_line
from runtime.manifest import Artifact


@dataclass(frozen=True)
class Weight:
    """A tensor that a graph reads: `file` is `None` for what lies in the graph itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Graph:
    """What a graph's file tells.

    Attributes:
        nodes: How many of each operator; those of another domain than ONNX's as `com.microsoft::MultiHeadAttention`.
            Of TorchScript the calls in its code; of a compiled package, which has none, nothing.
        weights: Every tensor with data.
        opsets: Version by domain, for ONNX.
        metadata: What a lone ONNX file tells about itself; of a compiled package, the machine that it needs.
    """

    nodes: dict[str, int]
    weights: tuple[Weight, ...]
    opsets: dict[str, int]
    metadata: dict[str, Any]


def read_graph(path: Path) -> Graph:
    """Return what is inside a graph of any format.

    Raises:
        ArtifactCorruptError: It cannot be read.
    """
    try:
        return _onnx(path) if path.suffix == ".onnx" else _archive(path)
    except Exception as error:  # protobuf, zipfile and json each have their own
        raise ArtifactCorruptError(
            f"{path} cannot be read as {path.suffix.removeprefix('.')}: {type(error).__name__}: {first_line(error)}. "
            "Build it again; python -m exporters.verify --hash tells which files were altered."
        ) from error


def _onnx(path: Path) -> Graph:
    import onnx

    model = onnx.load(path, load_external_data=False)
    nodes = Counter(f"{n.domain}::{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in _nodes(model))
    return Graph(
        nodes=dict(nodes.most_common()),
        weights=tuple(map(_tensor, model.graph.initializer)),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        metadata={"ir_version": model.ir_version, **{entry.key: entry.value for entry in model.metadata_props}},
    )


def _nodes(model: Any) -> Iterator[Any]:
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for attribute in node.attribute for inner in attribute.g.node]


def _tensor(tensor: Any) -> Weight:
    import onnx

    dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return Weight(tensor.name, dtype, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).nbytes)
    where = {entry.key: entry.value for entry in tensor.external_data}
    return Weight(
        tensor.name, dtype, tuple(tensor.dims), int(where["length"]), where["location"], int(where.get("offset", 0))
    )


# Of one value; of types that are not here, one byte.
_WIDTH = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


def _archive(path: Path) -> Graph:
    """Return what an archive of torch tells, TorchScript or a compiled package: both keep a table of their weights."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        table = json.loads(archive.read(_only(names, TABLE)))
        code = [archive.read(name).decode() for name in names if "/code/" in name and name.endswith(".py")]
        needs = [json.loads(archive.read(name)) for name in names if name.endswith(f"/{NEEDS}")]
    calls = Counter(call for text in code for call in re.findall(r"(?:torch|ops\.\w+)\.(\w+)\(", text))
    return Graph(
        nodes=dict(calls.most_common()),
        weights=tuple(_stored(name, *row) for name, row in table.items()),
        opsets={},
        metadata={"needs": needs[0]} if needs else {},
    )


def _only(names: list[str], wanted: str) -> str:
    return next(name for name in names if name.endswith(f"/extra/{wanted}"))


def _stored(name: str, file: str, offset: int, shape: list[int], *others: Any) -> Weight:
    dtype = others[1] if len(others) > 1 else "float32"  # before recipe 3 there were no others
    count = _WIDTH.get(dtype, 1)
    for side in shape:
        count *= side
    return Weight(name, dtype, tuple(shape), count, file, offset)


def describe(store: Store, model: str, artifact: Artifact) -> dict[str, Any]:
    """Return what is in an artifact: what its manifest tells and what its graph's file holds.

    Raises:
        ArtifactCorruptError: A file is missing, cut, or cannot be read.
    """
    graph = read_graph(store.check(model, artifact)[0])
    entry = artifact.to_json()
    return {
        "model": model,
        "is": artifact.key.describe(),
        **{name: entry[name] for name in ("key", "files", "inputs", "outputs")},
        **of_graph(graph),
        "passes": artifact.facts.get("passes", {}),
        "half": artifact.facts.get("half"),
        "int8": artifact.facts.get("int8"),
    }


def of_graph(graph: Graph) -> dict[str, Any]:
    """Return a graph as JSON values."""
    return {
        "nodes": graph.nodes,
        "fused": {name.partition("::")[2]: count for name, count in graph.nodes.items() if "::" in name},
        "opsets": graph.opsets,
        "metadata": graph.metadata,
        "weights": [{**vars(weight), "shape": list(weight.shape)} for weight in graph.weights],
    }
