"""The gate: an artifact is published only if its numbers are the eager backbone's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.parity import Parity
from runtime.errors import VerificationError


@dataclass(frozen=True)
class Limits:
    """What a precision may differ by.

    Attributes:
        relative_rms: Root mean square of the difference over that of the reference, worst image.
        cosine: Smallest cosine per image.
        token_cosine: Smallest cosine per token (position of a feature map).
        float64_ratio: Error against float64, over the eager backbone's own error at the same precision.
    """

    cosine: float
    token_cosine: float
    relative_rms: float = math.inf
    float64_ratio: float = math.inf


# A float32 number is stored to half of this, relatively: where eager is luckier than that, luck is not the yardstick.
EPSILON = float(np.finfo(np.float32).eps)
# By precision and spatial dimensions: instance norms over a whole volume sum a million numbers in another order.
# Eager has no int8 to compare with: its cosine to float32 decides.
_HALF = Limits(cosine=0.9995, token_cosine=0.999, float64_ratio=1.5)
_INT8 = Limits(cosine=0.995, token_cosine=-1.0)
LIMITS = {
    ("fp32", 2): Limits(0.999999, 0.999999, relative_rms=1e-5, float64_ratio=2.0),
    ("fp32", 3): Limits(0.999999, 0.999999, relative_rms=1e-4, float64_ratio=2.0),
    **{(precision, dims): _HALF for precision in ("fp16", "bf16") for dims in (2, 3)},
    **{("int8", dims): _INT8 for dims in (2, 3)},
}


@dataclass(frozen=True)
class Measured:
    """What verification measured of an artifact.

    Attributes:
        parities: Per output.
        float64: Per output: eager's relative RMS error against float64, and the artifact's.
        served_by: The backend, and onnxruntime's provider, that computed it.
    """

    parities: Sequence[Parity]
    float64: Sequence[tuple[float, float]]
    served_by: str


def require_finite(who: str, names: Sequence[str], batches: list[list[Any]]) -> None:
    """Raise if any value is NaN or infinite."""
    for batch in batches:
        for name, output in zip(names, batch, strict=True):
            bad = int(output.size - np.isfinite(output).sum())
            if bad:
                raise VerificationError(f"{name} of {who}: {bad} of {output.size} values are not finite")


def gate(parities: Sequence[Parity], limits: Limits) -> None:
    """Raise unless every output keeps the limits. Written so that NaN fails.

    Raises:
        VerificationError: Naming each output that does not.
    """
    problems = []
    for parity in parities:
        if not parity.relative_rms <= limits.relative_rms:
            problems.append(f"{parity.name}: relative RMS {parity.relative_rms:.3g} > {limits.relative_rms:g}")
        for what, cosine, limit in (
            ("image", parity.min_cosine, limits.cosine),
            ("token", parity.min_token_cosine, limits.token_cosine),
        ):
            if not cosine >= limit:
                problems.append(f"{parity.name}: min cosine per {what} {cosine:.7f} < {limit}")
    if problems:
        raise VerificationError("; ".join(problems))


def gate_float64(errors: Sequence[tuple[float, float]], limits: Limits) -> None:
    """Raise unless the artifact's error against float64 is of the size of the eager backbone's own.

    Args:
        errors: Per output: eager's relative RMS error against float64, and the artifact's.
        limits: Of the precision.

    Raises:
        VerificationError: It is larger than the limit times eager's.
    """
    for own, got in errors:
        if not got <= limits.float64_ratio * max(own, EPSILON):
            raise VerificationError(
                f"relative RMS error against float64 is {got:.3g}, eager's own is {own:.3g}: "
                f"more than {limits.float64_ratio:g} times as large"
            )
