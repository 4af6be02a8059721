"""Which packages the eager backend needs for a backbone, and what to install when one is missing. Standard library."""

from runtime.machine import installed
from runtime.spec import BackboneSpec

EXTRAS = {
    "eager": ("torch", "timm", "safetensors"),
    "transformers": ("transformers",),
    "radiology": ("monai", "einops"),
}


def missing_for_eager(spec: BackboneSpec) -> str | None:
    """Return what to install before `spec` can be built as eager torch; `None` when nothing is missing."""
    if not installed("torch"):
        return "torch is not installed: pip install 'backbone-runtime[eager]'."
    built_in = spec.build.__module__.startswith("runtime.")
    extras = [extra for extra in ("eager" if built_in else None, spec.extra) if extra]
    for extra in extras:
        missing = [package for package in EXTRAS.get(extra, ()) if not installed(package)]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            return f"{' and '.join(missing)} {verb} not installed: pip install 'backbone-runtime[{','.join(extras)}]'."
    return None
