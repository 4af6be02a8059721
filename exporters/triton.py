"""Command line: `python -m exporters.triton`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporters.serving.arguments import parser_of_triton
from exporters.serving.config import MODEL, GraphFacts, Serving, config_of
from exporters.serving.graph import look_at
from exporters.serving.names import check_name, name_of
from exporters.serving.parts import Part, Placed
from runtime import registry
from runtime.arguments import import_modules, join_negative
from runtime.artifacts import Store, open_store
from runtime.errors import ArtifactNotFoundError, BackboneError
from runtime.machine import installed
from runtime.manifest import Artifact
from runtime.request import Request, is_drawn, make_request
from runtime.selection import find_artifact, forms, missing

NEEDED = ("tritonclient", "grpc", "google.protobuf", "onnx", "filelock")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of_triton()
    options = parser.parse_args(join_negative(sys.argv[1:] if arguments is None else list(arguments)))
    if lacking := [package for package in NEEDED if not installed(package)]:
        names = ", ".join(lacking)
        print(f"error: exporters.triton needs {names}: pip install 'backbone-runtime[triton]'", file=sys.stderr)
        return 2
    try:
        request, serving = _asked(options)
        name = options.name or name_of(request)
        check_name(name)
    except BackboneError as error:
        parser.error(str(error))
    try:
        return _write(request, serving, name, options)
    except BackboneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on", file=sys.stderr)
        return 130


def _asked(options: argparse.Namespace) -> tuple[Request, Serving]:
    import_modules(options.imports)
    given = {
        "out_indices": options.out_indices[0],
        "backend": "onnx",
        "precision": options.precision,
        "input": options.input,
        "weights": options.weights,
        "seed": options.seed,
        "image_size": options.image_size,
        "artifacts": options.artifacts,
    }
    given = {name: value for name, value in given.items() if value is not None}
    request = make_request(registry.find(options.model), dict(options.option), given)
    request.size, request.canonical  # noqa: B018  (raise on bad values before anything starts)
    serving = Serving(
        target=options.target,
        instances=options.instances,
        gpus=options.gpus,
        max_batch_size=options.max_batch_size,
        preferred_batch_sizes=options.preferred_batch_size,
        queue_delay_us=options.queue_delay_us,
        engine_cache=options.tensorrt,
    )
    serving.check_precision(options.precision)
    return request, serving


def find(request: Request, store: Store, target: str) -> Artifact:
    """Return the artifact that instances on `target` serve; load_model would take the same on such a device.

    Raises:
        ArtifactNotFoundError: There is none in ONNX, which is all that Triton's onnxruntime backend reads.
    """
    manifest = store.read(request.spec.name)
    wanted = forms(request, "onnx", target)
    artifact = find_artifact(request, manifest, wanted)
    if artifact is not None:
        return artifact
    text = missing(request, manifest, wanted[0])
    others = sorted({str(a.key.form) for a in manifest.artifacts if a.key.format != "onnx"})
    if others:
        text += f"\nTriton's onnxruntime backend reads ONNX only. Of no use to it, though built: {'; '.join(others)}."
    raise ArtifactNotFoundError(text)


def _write(request: Request, serving: Serving, name: str, options: argparse.Namespace) -> int:
    from exporters.serving.repository import CONFIG, publish

    store = open_store(request.artifacts)
    artifact = find(request, store, serving.target)
    paths = store.check(request.spec.name, artifact)
    graph = look_at(paths[0])
    config = config_of(name, request, artifact, serving, graph)
    names = [MODEL, *(path.name for path in paths[1:])]
    parts = [Part(path, file, name) for path, file, name in zip(paths, artifact.files, names, strict=True)]
    repository = Path(options.repository).expanduser()
    placed, became = publish(repository, config, parts, version=options.version, overwrite=options.overwrite)
    for warning in warnings_of(artifact, serving, graph):
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        told = _as_json(artifact, config, placed, options) | {"configuration": became}
        print(json.dumps(told, sort_keys=True))
    else:
        _report(artifact, config, placed, options)
        print(f"  {options.repository}/{name}/{CONFIG}: {became}")
        print(f"Start it with: tritonserver --model-repository={repository.absolute()}")
    return 0


def _report(artifact: Artifact, config: Any, placed: Sequence[Placed], options: argparse.Namespace) -> None:
    print(f"{options.model} ({artifact.key.describe()}) is model {config.name!r}, version {options.version}.")
    for file in placed:
        shared = f", shared with {file.origin}" if file.origin else ""
        print(f"  {options.repository}/{file.path}: {file.bytes / 1e6:.1f} MB, {file.how}{shared}")


def warnings_of(artifact: Artifact, serving: Serving, graph: GraphFacts) -> list[str]:
    """Return what is not wrong, but not to be overlooked either."""
    key, found = artifact.key, []
    if is_drawn(key.weights):
        found.append(f"the weights are random ({key.weights}): good for tests of the serving, not for embeddings.")
    if key.target != serving.target:
        found.append(
            f"this graph was made for {key.target}: on {serving.target} it gives the same numbers, but slower than one "
            f"made for it (python -m exporters.build NAME --target {serving.target})."
        )
    if serving.engine_cache is not None and graph.own_operators:
        found.append(
            f"TensorRT cannot take {', '.join(graph.own_operators)} and leaves them to CUDA: it gets this graph in "
            "pieces, which may be slower than CUDA alone. Measure both."
        )
    return found


def _as_json(artifact: Artifact, config: Any, placed: Sequence[Placed], options: argparse.Namespace) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return {
        "model": options.model,
        "name": config.name,
        "version": options.version,
        "key": artifact.key.to_json(),
        "files": [asdict(file) for file in placed],
        "config": MessageToDict(config, preserving_proto_field_name=True),
    }


if __name__ == "__main__":
    sys.exit(main())
