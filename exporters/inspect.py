"""Command line: `python -m exporters.inspect`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporters.contents import describe, of_graph, read_graph
from runtime import registry
from runtime.arguments import add_common, parser_of
from runtime.artifacts import open_store
from runtime.errors import BackboneError, OptionError, UnknownModelError
from runtime.machine import installed
from runtime.terminal.output import complain, say, say_json, size, table
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m exporters.inspect pathology/kaiko_vits16
  python -m exporters.inspect pathology/kaiko_vits16 --graph "*.cuda.fp16.*" --weights
  python -m exporters.inspect model.onnx --json | jq .nodes          # a lone ONNX file

exit status: 0 done, 1 an artifact or its manifest is damaged, 2 wrong usage or nothing of that name, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    description = "Tell what is in published artifacts: inputs and outputs, operators, fusions, precisions, weights."
    parser = parser_of("python -m exporters.inspect", description, EPILOG)
    add = parser.add_argument
    add("name", metavar="NAME|FILE", help="published model, such as pathology/kaiko_vits16, or a .onnx file")
    add("--graph", default="*", metavar="GLOB", help="only graphs of these names, such as embedding.cpu.*")
    add("--weights", action="store_true", help="list every tensor")
    add_common(parser, "one JSON object per artifact, every tensor included", imports=False)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not installed("onnx"):
        raise OptionError("Inspecting needs onnx: pip install 'backbone-runtime[export]'.")
    if options.name.endswith(".onnx") and Path(options.name).is_file():
        _show({"is": options.name, **of_graph(read_graph(Path(options.name)))}, options)
        return 0
    store, name = open_store(options.artifacts), _registered(options.name)
    artifacts = store.read(name).artifacts
    found = [artifact for artifact in artifacts if fnmatchcase(artifact.graph.name, options.graph)]
    if not found:
        there = ", ".join(artifact.graph.name for artifact in artifacts)
        what = f"{name} has no graph {options.graph!r}; it has {there}" if there else _absent(name)
        raise UnknownModelError(f"{what}. The store is {store.root}.")
    failed = 0
    for artifact in found:
        try:
            _show(describe(store, name, artifact), options)
        except BackboneError as error:
            complain(error)
            failed += 1
    return 1 if failed else 0


def _registered(name: str) -> str:
    """Return the name that a former name stands for; one that is not registered here may be built all the same."""
    try:
        return registry.find(name).name
    except UnknownModelError:
        return name


def _absent(name: str) -> str:
    return f"Nothing is published as {name!r}; python -m runtime list --built tells what is"


def _show(told: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        say_json(told)
        return
    say("\n".join([*text(told), *([_tensors(told["weights"])] if options.weights else []), ""]))


def text(told: Mapping[str, Any]) -> list[str]:
    """Return what is in an artifact as lines for people."""
    rows = {
        "files": ", ".join(f"{file['name']} {size(file['bytes'])}" for file in told.get("files", ())),
        "inputs": _signature(told.get("inputs", ())),
        "outputs": _signature(told.get("outputs", ())),
        "opsets": _counts(told["opsets"]),
        "nodes": f"{sum(told['nodes'].values())}: {_counts(told['nodes'])}" if told["nodes"] else "none: compiled code",
        "fused": _counts(told["fused"]),
        "passes": _counts(told.get("passes") or {}),
        "half": _half(told.get("half")),
        "int8": _flat(told.get("int8")),
        "weights": _weights(told["weights"]),
    }
    lines = [f"  {name:9} {value}" for name, value in rows.items() if value]
    metadata = [f"  {'metadata':9} {name}: {value}" for name, value in sorted(told["metadata"].items())]
    return [f"{told['model']}: {told['is']}" if "model" in told else told["is"], *lines, *metadata]


def _signature(tensors: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{t['name']} {t['dtype']} [{', '.join(map(str, t['shape']))}]" for t in tensors)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _half(half: Mapping[str, Any] | None) -> str:
    if half is None:
        return ""
    islands = "; ".join(f"{i['nodes']} {i['operator']} ({i['reason']})" for i in half["float32"])
    return f"{half['nodes']} nodes in {half['precision']}, in float32: {islands or 'none'}"


def _flat(facts: Mapping[str, Any] | None) -> str:
    return "" if facts is None else ", ".join(f"{name} {value}" for name, value in facts.items())


def _weights(weights: Sequence[Mapping[str, Any]]) -> str:
    count, bytes = Counter[str](), Counter[str]()
    for weight in weights:
        count[weight["dtype"]] += 1
        bytes[weight["dtype"]] += weight["bytes"]
    kinds = ", ".join(f"{count[dtype]} {dtype} ({size(bytes[dtype])})" for dtype in sorted(count))
    return f"{len(weights)} tensors, {size(sum(bytes.values()))}: {kinds}"


def _tensors(weights: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (w["name"], w["dtype"], "x".join(map(str, w["shape"])), size(w["bytes"]), w["file"] or "in the graph", offset)
        for w in weights
        for offset in ["" if w["offset"] is None else str(w["offset"])]
    ]
    return table(("TENSOR", "TYPE", "SHAPE", "SIZE", "FILE", "OFFSET"), rows)


if __name__ == "__main__":
    sys.exit(main())
