"""What eager torch gives: the numbers that every artifact of a variant must equal."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.verify import EXACT_BATCH, Batch, require_finite, verification_inputs
from runtime.eager import EagerModel
from runtime.request import Request


@dataclass(frozen=True)
class Reference:
    """What eager torch gives for the verification inputs.

    Attributes:
        names: Output names, in order.
        batches: The inputs.
        outputs: Per batch, per output.
        exact: One batch's outputs in float64.
        exact_batch: Which batch that is.
    """

    names: tuple[str, ...]
    batches: list[Batch]
    outputs: list[list[Any]]
    exact: list[Any]
    exact_batch: int


def make_reference(request: Request, model: EagerModel) -> Reference:
    """Return the eager backbone's outputs, and float64's for the first batch.

    Raises:
        VerificationError: Eager itself gives values that are not finite.
    """
    import torch

    from exporters.float64 import run_in_float64
    from runtime.backends.eager import TorchSession

    session = TorchSession(model.module, "cpu", "reference")  # what load_model(backend="eager") serves from
    batches = verification_inputs(request.spec.preprocessing, image_sizes(request))
    outputs = [[o.numpy() for o in session.run(torch.from_numpy(b))] for b in batches]
    names = ("embedding",) if request.out_indices is None else tuple(f"map_{i}" for i in range(len(outputs[0])))
    require_finite("the eager backbone itself", names, outputs)
    index = EXACT_BATCH[request.spec.preprocessing.spatial_dims]
    exact = [o.numpy() for o in run_in_float64(model.module, torch.from_numpy(batches[index]))]
    return Reference(names, batches, outputs, exact, index)


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
