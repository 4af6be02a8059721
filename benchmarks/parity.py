"""How far published artifacts lie from eager torch: read from the manifests that verification wrote."""

from typing import Any

from benchmarks.figure import Figure
from runtime import list_models
from runtime.artifacts import open_store

GOAL = 1e-5


def collect(artifacts: str | None) -> Figure:
    """Return the worst relative RMS of every registered backbone over its published artifacts and outputs."""
    store = open_store(artifacts)
    rows = {name: row for name in list_models() if (row := _row(store.read(name).artifacts))}
    missing = [name for name in list_models() if name not in rows]
    worst = max((row["relative_rms"] for row in rows.values()), default=float("nan"))
    return Figure(
        name=f"fp32 parity of {len(rows)} of {len(list_models())} registered backbones",
        goal=f"relative RMS at most {GOAL:g} for the embedding and every map",
        reached=not missing and worst <= GOAL,
        measured=f"worst {worst:.2g}" + (f"; not built: {', '.join(missing)}" if missing else ""),
        data={"backbones": rows},
    )


def _row(artifacts: Any) -> dict[str, Any] | None:
    outputs = [(a.key.format, o) for a in artifacts for o in a.facts["parity"]["outputs"]]
    if not outputs:
        return None
    files = {file.name: file.bytes for a in artifacts for file in a.files}
    onnx = [o for format, o in outputs if format == "onnx"]
    return {
        "artifacts": len(artifacts),
        "outputs": len(outputs),
        "relative_rms": max(o["relative_rms"] for _, o in outputs),
        "min_token_cosine": min(o["min_token_cosine"] for _, o in outputs),
        "float64_error_eager": max((o["float64_error"]["eager"] for o in onnx), default=None),
        "float64_error_onnx": max((o["float64_error"]["artifact"] for o in onnx), default=None),
        "megabytes": round(sum(files.values()) / 1e6, 1),
        "weights": sorted({a.key.weights for a in artifacts}),
    }
