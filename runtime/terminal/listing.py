"""Command line: `python -m runtime list`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from runtime import registry
from runtime.arguments import add_common, import_modules, parser_of
from runtime.artifacts import Store, named_address, open_store, place
from runtime.errors import ManifestError, UnknownModelError
from runtime.manifest import Manifest
from runtime.spec import BackboneSpec
from runtime.terminal import described
from runtime.terminal.output import remark, say, say_json, size, table
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m runtime list                             # every registered backbone
  python -m runtime list "pathology/*" "timm/vit_*"
  python -m runtime list --built                     # a line for each artifact in the folder of artifacts
  python -m runtime list --json | jq -r 'select(.gated) | .model'

exit status: 0 done, 1 the folder of artifacts or a manifest cannot be read, 2 wrong usage or a glob that matches
nothing, 130 interrupted"""

_OF_BACKBONES = ("MODEL", "PIXELS", "BLOCKS", "LICENCE", "GATED", "BUILT")
_OF_ARTIFACTS = ("MODEL", "OUTPUTS", "FORM", "IMAGES", "WEIGHTS", "MIN COSINE", "REL RMS", "GRAPH")


@dataclass(frozen=True)
class Row:
    """A name, as it is listed.

    Attributes:
        spec: `None` for what is built and not registered here.
        manifest: What is built of it; `None` where nothing is, or where the manifest cannot be used.
        problem: Why it cannot.
    """

    name: str
    spec: BackboneSpec | None
    manifest: Manifest | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` tells."""
        facts = {"model": self.name} if self.spec is None else described.backbone(self.spec)
        built = [described.artifact(artifact, {}) for artifact in self.manifest.artifacts] if self.manifest else []
        return {**facts, "registered": self.spec is not None, "built": built, "problem": self.problem}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of("python -m runtime list", "List the registered backbones, or what is built.", EPILOG)
    parser.add_argument("globs", nargs="*", default=["*"], metavar="GLOB", help="such as pathology/* (default: all)")
    parser.add_argument("--built", action="store_true", help="only what is built, with its artifacts")
    add_common(parser, "one JSON object per backbone: its facts and its artifacts")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import_modules(options.imports)
    address = None if options.built else named_address(options.artifacts)
    store = None if address else open_store(options.artifacts)
    built = store.models() if store else []
    registered = registry.list_models(options.globs)
    matching = [name for name in built if any(fnmatchcase(name, glob) for glob in options.globs)]
    if not registered and not matching:
        globs = " ".join(options.globs)
        raise UnknownModelError(
            f"{globs!r} matches no registered backbone, nor one built in {place(options.artifacts)}."
        )
    names = matching if options.built else sorted({*registered, *matching})
    rows = [_row(name, store, name in built) for name in names]
    _show(rows, options)
    if address:
        remark(f"BUILT is not told of {address}, a repository of the hub: see python -m runtime info MODEL.")
    for row in rows:
        if row.problem:
            remark(f"error: {row.problem}")
    return 1 if any(row.problem for row in rows) else 0


def _row(name: str, store: Store | None, built: bool) -> Row:
    try:
        spec: BackboneSpec | None = registry.find(name)
    except UnknownModelError:
        spec = None
    try:
        return Row(name, spec, store.read(name) if store and built else None)
    except ManifestError as error:
        return Row(name, spec, None, str(error))


def _show(rows: list[Row], options: argparse.Namespace) -> None:
    if options.json:
        for row in rows:
            say_json(row.to_json())
    elif options.built and not rows:
        remark(f"Nothing of it is built in {place(options.artifacts)}. Build it with: python -m exporters.build NAME")
    elif options.built:
        say(table(_OF_ARTIFACTS, _artifacts(rows)))
    else:
        say(table(_OF_BACKBONES, map(_backbone, rows)))


def _backbone(row: Row) -> tuple[str, ...]:
    artifacts = row.manifest.artifacts if row.manifest else ()
    built = f"{len(artifacts)} ({size(described.stored_bytes(artifacts))})" if artifacts else ""
    if row.spec is None:
        return (row.name, "", "", "not registered here", "", built)
    spec = row.spec
    depth = "" if spec.depth is None else str(spec.depth)
    pixels = "x".join([str(spec.preprocessing.size)] * spec.preprocessing.spatial_dims)
    return (row.name, pixels, depth, spec.licence or "not stated", "gated" if spec.gated else "", built)


def _artifacts(rows: list[Row]) -> list[tuple[str, ...]]:
    found = [(row.name, artifact) for row in rows if row.manifest for artifact in row.manifest.artifacts]
    return [
        (
            name,
            told["variant"],
            told["form"],
            _images(artifact.key.image_size),
            artifact.key.weights,
            _number(told["parity"]["min_cosine"], "{:.9f}"),
            _number(told["parity"]["relative_rms"], "{:.2g}"),
            size(artifact.graph.bytes),
        )
        for name, artifact in found
        for told in [described.artifact(artifact, {})]
    ]


def _images(image_size: tuple[int, ...] | str) -> str:
    return image_size if isinstance(image_size, str) else "x".join(map(str, image_size))


def _number(value: float | None, shape: str) -> str:
    return "" if value is None else shape.format(value)
