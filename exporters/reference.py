"""What eager torch gives: the numbers that every artifact of a variant must equal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.gate import require_finite
from exporters.inputs import EXACT_BATCH, verification_images, verification_inputs
from exporters.parity import relative_rms
from runtime.eager import EagerModel
from runtime.errors import BuildError
from runtime.facts import Preprocessing
from runtime.manifest import Form
from runtime.preprocess import normalise
from runtime.request import Request


@dataclass(frozen=True)
class Reference:
    """What eager torch gives for the verification inputs.

    Attributes:
        names: Output names, in order.
        sizes: Heights and widths (and depths) of the inputs, in pixels.
        batches: What an artifact is given: float32 [B, C, H, W], or uint8 [B, H, W, C].
        outputs: Per batch, per output.
        exact: One batch's outputs in float64.
        exact_batch: Which batch that is.
        own_errors: By precision: eager's relative RMS error against float64, per output; infinite where it overflows.
    """

    names: tuple[str, ...]
    sizes: Sequence[tuple[int, ...]]
    batches: list[Any]
    outputs: list[list[Any]]
    exact: list[Any]
    exact_batch: int
    own_errors: Mapping[str, list[float]]


def load_eager(request: Request) -> EagerModel:
    """Return the eager backbone of a request, the same one whatever the environment says of fused attention.

    Raises:
        BackboneError: As `runtime.eager.build`.
        BuildError: A file that its function reads is missing.
    """
    from exporters.written_attention import fused_attention
    from runtime import eager

    try:
        with fused_attention():
            return eager.build(request)
    except OSError as error:  # a file that its function misses is not the store's fault
        raise BuildError(f"{request.spec.name} could not be loaded: {type(error).__name__}: {error}") from error


def make_references(request: Request, model: EagerModel, forms: Sequence[Form]) -> dict[str, Reference]:
    """Return the reference of each input contract among the forms, with what eager gives in their precisions.

    Raises:
        VerificationError: Eager itself gives values that are not finite.
    """
    return {
        input: make_reference(request, model, input, [f.precision for f in forms if f.input == input])
        for input in dict.fromkeys(form.input for form in forms)
    }


def make_reference(
    request: Request, model: EagerModel, input: str = "float32", precisions: Iterable[str] = ("fp32",)
) -> Reference:
    """Return the eager backbone's outputs, and one batch's in float64 and in each of the precisions.

    Raises:
        VerificationError: Eager itself gives values that are not finite.
    """
    import torch

    from exporters.float64 import run_in_float64
    from runtime.backends.eager import TorchSession

    session = TorchSession(model.module, "cpu", "reference")  # what load_model(backend="eager") serves from
    facts, sizes = request.spec.preprocessing, image_sizes(request)
    given = _given(facts, sizes, input)
    batches = [normalise(batch, facts) for batch in given] if input == "uint8" else given
    outputs = [[o.numpy() for o in session.run(torch.from_numpy(b))] for b in batches]
    names = ("embedding",) if request.out_indices is None else tuple(f"map_{i}" for i in range(len(outputs[0])))
    require_finite("the eager backbone itself", names, outputs)
    index = EXACT_BATCH[facts.spatial_dims]
    images = torch.from_numpy(batches[index])
    exact = [o.numpy() for o in run_in_float64(model.module, images)]
    own = {p: _errors(exact, _eager_outputs(model, p, images, outputs[index])) for p in dict.fromkeys(precisions)}
    return Reference(names, sizes, given, outputs, exact, index, own)


def _given(facts: Preprocessing, sizes: list[tuple[int, ...]], input: str) -> list[Any]:
    if input == "uint8":
        return list(verification_images(facts, [(height, width) for height, width in sizes]))
    return list(verification_inputs(facts, sizes))


def _eager_outputs(model: EagerModel, precision: str, images: Any, fp32: list[Any]) -> list[Any]:
    """Return what eager gives in a precision; of int8, which it does not have, float32's."""
    if precision not in ("fp16", "bf16"):
        return fp32
    from exporters.half.eager import run_in_half

    return [o.float().numpy() for o in run_in_half(model.module, images, precision)]


def _errors(exact: list[Any], outputs: list[Any]) -> list[float]:
    # Where eager overflows at a precision its error is infinite: no yardstick, and the cosines decide.
    errors = [relative_rms(true, own) for true, own in zip(exact, outputs, strict=True)]
    return [error if math.isfinite(error) else math.inf for error in errors]


def image_sizes(request: Request) -> list[tuple[int, ...]]:
    """Return the heights and widths (and depths) that a variant is verified at, in pixels."""
    if not isinstance(request.size, str):
        return [request.size]
    # Dynamic: the declared size, and two that the export does not see and that are not square.
    patch = request.spec.patch_size
    side = round(request.spec.preprocessing.size / patch) * patch
    return [(side, side), (side - 2 * patch, side + 3 * patch), (side + patch, side - patch)]


def example(request: Request) -> Any:
    """Return the batch an export traces with: two images, for a batch of one would be taken for a constant."""
    import torch

    *others, width = image_sizes(request)[0]
    if request.size == "dynamic":
        width += request.spec.patch_size  # height and width must not look like the same dimension
    shape = (2, request.spec.preprocessing.channels, *others, width)
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
