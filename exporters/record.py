"""What is written down about an artifact: in its manifest entry, and inside a lone ONNX file."""

import json
import math
from dataclasses import asdict
from typing import Any

from exporters.gate import Measured
from exporters.reference import Reference
from exporters.staleness import versions
from runtime.eager import EagerModel
from runtime.manifest import Form
from runtime.request import Request


def metadata(request: Request, form: Form) -> dict[str, str]:
    """Return what a lone ONNX file tells about itself."""
    spec = request.spec
    return {
        "model": spec.name,
        "artifact": request.key(form).describe(),
        "key": json.dumps(request.key(form).to_json(), sort_keys=True),
        "preprocessing": json.dumps(asdict(spec.preprocessing), sort_keys=True),
        "source": str(request.source) if request.source else "the registered function",
        "licence": spec.licence or "not stated",
    }


def facts(request: Request, form: Form, model: EagerModel) -> dict[str, Any]:
    """Return what the manifest tells of an artifact beyond its key and files, but for its parity."""
    spec = request.spec
    return {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        **({} if request.out_indices is None else {"maps": _maps(model.module)}),
        "preprocessing": asdict(spec.preprocessing),
        "source": {
            "id": str(request.source) if request.source else None,
            "revision": model.revision,
            "licence": spec.licence,
            "gated": spec.gated,
        },
        "versions": versions(form.format, spec),
    }


def _maps(module: Any) -> list[dict[str, Any]] | None:
    """Return what a module tells of its feature maps: the block of each, and whether the final norm was applied."""
    blocks, normed = getattr(module, "indices", None), getattr(module, "normed", None)
    if blocks is None or normed is None:
        return None
    return [{"block": block, "normed": final} for block, final in zip(blocks, normed, strict=True)]


def parity(measured: Measured, reference: Reference) -> dict[str, Any]:
    """Return how far an artifact lies from eager, and on what and by which provider that was measured."""
    return {
        "batches": sorted({len(batch) for batch in reference.batches}),
        "image_sizes": [list(size) for size in reference.sizes],
        "outputs": outputs(measured),
        "served_by": measured.served_by,
    }


def outputs(measured: Measured) -> list[dict[str, Any]]:
    """Return how far each output lies from eager in float32, and both from float64."""
    return [
        {**p.to_json(), "float64_error": {"eager": _digits(own), "artifact": _digits(new)}}
        for p, (own, new) in zip(measured.parities, measured.float64, strict=True)
    ]


def _digits(error: float) -> float | None:
    return float(f"{error:.3g}") if math.isfinite(error) else None
