"""What each graph pass is worth on a CPU: `python -m benchmarks.passes` measures the graph without it.

One thread, interleaved, processor time instead of the clock: other load on the machine moves every contender alike.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.machine_facts import machine_facts
from runtime.arguments import parser_of, positive

REPORT = Path(__file__).parent / "reports" / "passes.md"
PASSES = (
    "drop_copies",
    "fuse_gelu",
    "fuse_silu",
    "pad_for_prefix_tokens",
    "pad_for_registers",
    "compute_read_token_only",
    "pack_attention",
)


SERVED, EXPORTED = "all that the CPU graph has", "none: as torch exports it"
# A plain ViT; registers and LayerScale; SwiGLU and rotary positions; windows; convolutions.
MODELS: dict[str, dict[str, Any]] = {
    "vit_small_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 224},  # as pathology's encoders are run, not 518
    "vit_small_plus_patch16_dinov3": {"img_size": 224},
    "swin_tiny_patch4_window7_224": {},
    "convnext_tiny": {},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the report."""
    parser = parser_of("python -m benchmarks.passes", __doc__)
    add = parser.add_argument
    add("models", nargs="*", default=list(MODELS), metavar="MODEL", help="models of timm (%(default)s)")
    add("--batches", type=positive, nargs="+", default=[2, 8], metavar="N", help="images a call (%(default)s)")
    add("--rounds", type=positive, default=20, metavar="N", help="calls of each contender (%(default)s)")
    given = parser.parse_args(arguments)
    sections = [_heading(given.rounds)]
    for model in given.models:
        graphs, images = _graphs(model, max(given.batches))
        sections.append(_section(model, {n: _measure(graphs, images[:n], given.rounds) for n in given.batches}))
        print(sections[-1], flush=True)
    REPORT.write_text("\n".join(sections))


def _graphs(name: str, batch: int) -> tuple[dict[str, bytes], Any]:
    """Return the graph of every contender, and images."""
    import timm
    import torch

    from exporters import to_onnx
    from runtime.loud import draw_loud

    module = timm.create_model(name, num_classes=0, **MODELS.get(name, {})).eval()
    draw_loud(module, 0)
    config: Any = module.default_cfg
    channels, *size = config["input_size"]
    size = [MODELS.get(name, {}).get("img_size", side) for side in size]
    images = torch.randn(max(batch, 2), channels, *size, generator=torch.Generator().manual_seed(0))
    whole, plain = (
        to_onnx.export(module, images[:2], ["embedding"], None, whole_attention=whole).model for whole in (True, False)
    )
    made = {SERVED: _optimised(whole)}
    made["without fuse_attention"] = _optimised(plain)
    made |= {f"without {each}": _optimised(whole, without=(each,)) for each in PASSES}
    made["with fuse_skip_normalisation"] = _optimised(whole, also="fuse_skip_normalisation")
    made[EXPORTED] = _optimised(plain, without=(*PASSES, "cancel_transposes"))
    base = made[SERVED]
    changed = {each: graph for each, graph in made.items() if graph != base}  # a pass that finds nothing has no row
    return {SERVED: base} | changed, images.numpy()


def _optimised(model: Any, without: Sequence[str] = (), also: str | None = None) -> bytes:
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from exporters import optimise

    graph = model.clone()
    with contextlib.ExitStack() as stack:
        for each in without:
            stack.enter_context(mock.patch.object(optimise, each, return_value=0))
        optimise.optimise(graph, dynamic=False, target="cpu")
    if also:
        getattr(optimise, also)(graph)
        RemoveUnusedNodesPass()(graph)
    return bytes(ir.to_proto(graph).SerializeToString(deterministic=True))


def _measure(graphs: dict[str, bytes], images: Any, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time an image took, of every call of every contender."""
    runs = {name: _session(graph, images) for name, graph in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:  # the first call allocates
                times[name].append((time.process_time() - started) / len(images))
    return times


def _session(graph: bytes, images: Any) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def _heading(rounds: int) -> str:
    facts = machine_facts()
    return f"""# What the graph passes are worth on a CPU

Float32, onnxruntime, one thread of {facts["processor"]}: processor time an image, the fastest and the median of
{rounds} calls, contenders interleaved. A ratio above 1: slower than the graph as served. A pass without a row finds
nothing in that model. `fold_layer_scale` changes float32 weights, which stay as they are: it serves 16 bits and int8.
Made by `python -m benchmarks.passes`.
"""


def _section(model: str, times: dict[int, dict[str, list[float]]]) -> str:
    lines = [
        f"## {model}",
        "",
        "| graph | images a call | ms an image (min) | median | ratio of min | of median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for batch, measured in times.items():
        base, *_ = measured.values()
        lines += [_row(name, batch, seconds, base) for name, seconds in measured.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, batch: int, seconds: list[float], base: list[float]) -> str:
    best, middle = min(seconds), statistics.median(seconds)
    ratios = f"{best / min(base):.3f} | {middle / statistics.median(base):.3f}"
    return f"| {name} | {batch} | {1e3 * best:.2f} | {1e3 * middle:.2f} | {ratios} |"


if __name__ == "__main__":
    main()
