"""Who is measured: a table, one line per way to serve a backbone. What cannot run here says so by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.contender import WITHOUT_TORCH, Contender
from runtime.manifest import Form

EAGER = "eager fp32"
INSTANTLY = ", load fast"  # ends the label of what is loaded without preparing its weights
CAPTURED = " with CUDA graphs"  # ends the label of what is replayed instead of launched
Side = Literal["torch", "ours", "peer", "product"]


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        label: How the report names it.
        side: `torch` itself, `ours` (served from artifacts of this project), `peer` (what others do), or `product`: a
            matrix product alone.
        precision: Of its weights and matrix products.
        way: Function of `benchmarks.ways`.
        options: For that function, beyond model, weights, device and artifacts.
        form: The artifact it needs.
        export: The graph it needs that is not ours: a function of `benchmarks.peers`.
        libraries: What is imported before its loading is timed.
        images: `float32` or `uint8`.
    """

    label: str
    side: Side
    precision: str
    way: str
    options: dict[str, Any] = field(default_factory=dict)
    form: Form | None = None
    export: str | None = None
    libraries: tuple[str, ...] = ()
    images: str = "float32"


_TORCH = ("torch", "timm")
_ORT = ("numpy", "onnxruntime")


def _torch(label: str, precision: str, way: str, **options: Any) -> Entry:
    return Entry(label, "torch", precision, way, {"precision": precision, **options}, libraries=_TORCH)


def _ours(label: str, backend: str, precision: str, form: Form, libraries: tuple[str, ...]) -> Entry:
    options = {"backend": backend} | ({"precision": precision} if precision != "fp32" else {})
    return Entry(label, "ours", precision, "runtime", options, form, libraries=libraries)


def _uint8(label: str, precision: str, form: Form, libraries: tuple[str, ...]) -> Entry:
    options = {"backend": "onnx", "precision": precision, "input": "uint8"}
    return Entry(label, "ours", precision, "runtime", options, form, libraries=libraries, images="uint8")


def _instantly(precision: str, form: Form, libraries: tuple[str, ...]) -> Entry:
    options = {"backend": "onnx", "precision": precision, "load": "fast"}
    return Entry(f"onnx {precision}{INSTANTLY}", "ours", precision, "runtime", options, form, libraries=libraries)


def _captured(precision: str, libraries: tuple[str, ...]) -> Entry:
    options = {"backend": "onnx", "precision": precision, "cuda_graphs": True}
    form = Form("onnx", "cuda", precision)
    return Entry(f"onnx {precision}{CAPTURED}", "ours", precision, "runtime", options, form, libraries=libraries)


def _peer(label: str, export: str) -> Entry:
    return Entry(label, "peer", "fp32", "plain_onnx", export=export, libraries=_ORT)


def _product(library: str, precision: str) -> Entry:
    return Entry(f"products {library} {precision}", "product", precision, f"products_{library}")


_EAGER = Entry(EAGER, "torch", "fp32", "runtime", {"backend": "eager"}, libraries=_TORCH)
_TORCHSCRIPT = _ours("torchscript fp32", "torchscript", "fp32", Form("torchscript"), _TORCH)
_VINO = ("numpy", "openvino")

# float16 is no precision of CPUs: their kernels widen it, and torch's take minutes.
CPU = (
    _EAGER,
    _torch("eager bf16", "bf16", "eager_cast"),
    _torch("eager bf16 autocast", "bf16", "eager_autocast"),
    _torch("torch.compile fp32", "fp32", "compiled"),
    _torch("torch.compile bf16", "bf16", "compiled"),
    _TORCHSCRIPT,
    _ours("onnx fp32", "onnx", "fp32", Form("onnx", "cpu"), _ORT),
    _instantly("fp32", Form("onnx", "cpu"), _ORT),
    _uint8("onnx fp32 from uint8", "fp32", Form("onnx", "cpu", input="uint8"), _ORT),
    _ours("onnx int8", "onnx", "int8", Form("onnx", "cpu", "int8"), _ORT),
    _ours("openvino fp32", "openvino", "fp32", Form("onnx", "cpu"), _VINO),
    _ours("openvino bf16", "openvino", "bf16", Form("onnx", "cpu", "bf16"), _VINO),
    _ours("openvino int8", "openvino", "int8", Form("onnx", "cpu", "int8"), _VINO),
    _ours("pt2 fp32", "pt2", "fp32", Form("pt2", "cpu"), _TORCH),
    _ours("pt2 bf16", "pt2", "bf16", Form("pt2", "cpu", "bf16"), _TORCH),
    _peer("torch.onnx.export, plain", "dynamo"),
    _peer("torch.onnx.export, legacy", "legacy"),
    _peer("optimum O3", "optimum"),
    *(_product("torch", precision) for precision in ("fp32", "bf16", "int8")),
    *(_product("onnx", precision) for precision in ("fp32", "int8")),
)

CUDA = (
    _EAGER,
    _torch("eager fp16", "fp16", "eager_cast"),
    _torch("eager bf16", "bf16", "eager_cast"),
    _torch("eager fp16 autocast", "fp16", "eager_autocast"),
    _torch("eager bf16 autocast", "bf16", "eager_autocast"),
    _torch("torch.compile fp32", "fp32", "compiled"),
    _torch("torch.compile fp16", "fp16", "compiled"),
    _torch("torch.compile bf16", "bf16", "compiled"),
    _torch(f"torch.compile fp16{CAPTURED}", "fp16", "compiled", mode="reduce-overhead"),
    _TORCHSCRIPT,
    *(
        _ours(f"onnx {p}", "onnx", p, Form("onnx", "cuda", p), (*_TORCH, "onnxruntime"))
        for p in ("fp32", "fp16", "bf16")
    ),
    *(_captured(p, (*_TORCH, "onnxruntime")) for p in ("fp16", "bf16")),
    _uint8("onnx fp16 from uint8", "fp16", Form("onnx", "cuda", "fp16", "uint8"), (*_TORCH, "onnxruntime")),
    *(_ours(f"pt2 {p}", "pt2", p, Form("pt2", "cuda", p), _TORCH) for p in ("fp32", "fp16", "bf16")),
    _peer("torch.onnx.export, plain", "dynamo"),
    _peer("torch.onnx.export, legacy", "legacy"),
    _peer("optimum O3", "optimum"),
    *(_product("torch", precision) for precision in ("fp32", "bf16", "fp16")),
)

LINEUPS: dict[str, tuple[Entry, ...]] = {"cpu": CPU, "cuda": CUDA}


def labels() -> tuple[str, ...]:
    """Return every label, each once."""
    return tuple(dict.fromkeys(entry.label for entries in LINEUPS.values() for entry in entries))


def contender(entry: Entry, model: str, given: dict[str, Any]) -> Contender:
    """Return the contender of a line, for a model.

    Args:
        entry: The line.
        model: Registry name.
        given: `weights`, `device`, `artifacts`, the `batch_sizes` that will come; of a peer, its `graph`; of products,
            their shapes.
    """
    without_torch = entry.way == "runtime" and "torch" not in entry.libraries
    known = {"runtime": ("weights", "device", "artifacts"), "plain_onnx": ("device", "graph")}
    names: Sequence[str] = known.get(entry.way, ("weights", "device", "products"))
    if entry.options.get("cuda_graphs"):
        names = (*names, "batch_sizes")
    return Contender(
        entry.label,
        model,
        {**{name: given[name] for name in names if name in given}, **entry.options, **_precision_of(entry)},
        WITHOUT_TORCH if without_torch else (),
        entry.way,
        libraries=entry.libraries,
        images=entry.images,
    )


def _precision_of(entry: Entry) -> dict[str, str]:
    return {"precision": entry.precision} if entry.side == "product" else {}
