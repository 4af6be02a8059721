"""Command line: `python -m runtime info`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from runtime import registry
from runtime.arguments import (
    add_common,
    device,
    image_size,
    import_modules,
    join_negative,
    option,
    out_indices,
    parser_of,
)
from runtime.manifest import INPUTS, PRECISIONS
from runtime.request import BACKENDS, Request, make_request
from runtime.spec import BackboneSpec
from runtime.terminal.explained import explain
from runtime.terminal.output import say, say_json, size
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m runtime info pathology/kaiko_vits16
  python -m runtime info pathology/kaiko_vits16 --out-indices 4 --precision bf16     # what would serve that, and why
  python -m runtime info pathology/kaiko_vits16 --json | jq .serves

exit status: 0 done (also where nothing can serve), 1 the manifest cannot be used, 2 wrong usage or an unknown name,
130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(join_negative(sys.argv[1:] if arguments is None else list(arguments)))
    return exit_status(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    description = "Tell what a backbone is, what is built of it, and what load_model would serve it by."
    parser = parser_of("python -m runtime info", description, EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="registered backbone, such as pathology/kaiko_vits16")
    add("--out-indices", type=out_indices, default=(None,), metavar="WHICH", help="none (default), 2, or -2,-4")
    add("--backend", choices=BACKENDS, help="default: auto")
    add("--device", type=device, metavar="DEVICE", help="cpu, cuda or cuda:1; default: CUDA if it starts, else the CPU")
    add("--precision", choices=PRECISIONS, help="default: fp32")
    add("--input", choices=INPUTS, help="default: float32")
    add("--weights", metavar="WHICH", help="pretrained (default), random or checkpoint:<digits>")
    add("--seed", type=int, help="of random weights (default: 0)")
    add("--image-size", type=image_size, metavar="N|HxW|dynamic", help="default: the publisher's size")
    add("--option", action="append", default=[], type=option, metavar="NAME=VALUE", help="the backbone's own option")
    add_common(parser, "one JSON object")
    return parser


def _run(options: argparse.Namespace) -> int:
    import_modules(options.imports)
    names = ("backend", "device", "precision", "input", "weights", "seed", "image_size", "artifacts")
    asked = {name: getattr(options, name) for name in names}
    request = make_request(
        registry.find(options.model), dict(options.option), {"out_indices": options.out_indices[0], **asked}
    )
    request.size, request.canonical  # noqa: B018  (raise on bad values before anything is read)
    told = explain(request)
    if options.json:
        say_json(told)
    else:
        say("\n".join([*_facts(request.spec, told), "", *_built(told), "", *_served(request, told)]))
    return 0


def _facts(spec: BackboneSpec, told: dict[str, Any]) -> list[str]:
    facts = spec.preprocessing
    sides = " x ".join([str(facts.size)] * facts.spatial_dims)
    unit = "pixels" if facts.spatial_dims == 2 else "voxels"
    resize = f", shorter side resized to {facts.resize}" if facts.resize else ""
    options = ", ".join(f"{name}={value}" for name, value in told["options"].items())
    rows = {
        "images": f"{facts.channels} channels, {sides} {unit}{resize}, {facts.interpolation}",
        "mean, std": f"{_numbers(facts.mean)}; {_numbers(facts.std)}",
        "blocks": f"{spec.depth or 'unknown'}, patch {spec.patch_size}",
        "embedding": str(told["embedding"] or "length unknown until it is built"),
        "licence": (spec.licence or "not stated") + (", gated" if spec.gated else ""),
        "source": str(told["source"] or "the registered function"),
        "options": options,
        "aliases": ", ".join(spec.aliases),
        "needs": f"pip install 'backbone-runtime[eager,{spec.extra}]' to build or run it eagerly" if spec.extra else "",
    }
    return [spec.name, *(f"  {name:11}{value}" for name, value in rows.items() if value)]


def _numbers(values: Sequence[float] | None) -> str:
    return "not stated" if values is None else ", ".join(f"{value:g}" for value in values)


def _built(told: dict[str, Any]) -> list[str]:
    if not told["built"]:
        return [f"Built in {told['artifacts']}: nothing"]
    lines = [f"Built in {told['artifacts']}: {len(told['built'])} artifacts, {size(told['bytes'])}"]
    for built in told["built"]:
        known = {name.replace("_", " "): value for name, value in built["parity"].items() if value is not None}
        numbers = ", ".join(f"{name} {value:.9g}" for name, value in known.items())
        lines += [f"  {built['is']}", f"    {built['graph']}, served by {', '.join(built['served_by'])}"]
        lines += [f"    {numbers} ({built['measured_on']})"] if numbers else []
        lines += [f"    damaged: {problem}" for problem in built["problems"]]
    return lines


def _served(request: Request, told: dict[str, Any]) -> list[str]:
    asked = f"{request.precision}, {request.input} input, backend={request.backend!r}, device={request.device!r}"
    lines = [f"Asked for {asked}:"]
    for chance in told["candidates"]:
        says = chance["reason"] or (f"from {chance['from']}" if chance["from"] else "from the registered function")
        lines.append(f"  {chance['backend']:12}{chance['verdict']}: {says}".replace("\n", "\n" + " " * 14))
    if told["measured"]:
        lines.append(f"Measured: {told['measured']}")
    return [*lines, f"Load it with: {told['load']}" if told["load"] else f"Nothing serves it: {told['refused']}"]
