"""Position embeddings for an image size that is known only in the forward pass, as two matrix products.

torch's `interpolate` becomes a Resize in an exported graph, with cubic rules that differ between exporters and
runtimes, and libraries fix the size while they are exported. Here the weights of the bicubic kernel are computed from
the number of patches: sizes stay symbolic, and the graph holds nothing but arithmetic.
"""

import torch
from torch import Tensor


def resample(
    table: Tensor, side: int, grid: tuple[int, int], *, antialias: bool = False, offset: Tensor | float = 0.0
) -> Tensor:
    """Return the position embedding [1, M M, D] of `side` = M patches squared for `grid`, (h, w): [1, h w, D].

    Equal to torch's `interpolate(size=grid, mode="bicubic", antialias=antialias)`. `offset` is added to the number of
    patches when it becomes a scale, which is what `interpolate(scale_factor=(n + offset) / M)` does.
    """
    down, across = (_weights(side, count, antialias, offset) for count in grid)
    tall = (down @ table.reshape(side, -1)).reshape(-1, side, table.shape[2])
    return (across @ tall).flatten(0, 1)[None]


def count_of(dimension: int) -> Tensor:
    """Return the length of a dimension as a tensor, which a graph computes anew for every input."""
    return torch.ones(dimension).sum()


def _weights(side: int, count: int, antialias: bool, offset: Tensor | float) -> Tensor:
    """Return the matrix [count, side] that reads `count` places evenly off `side` ones."""
    places = torch.arange(count).float()[:, None]
    aimed = count_of(count) + offset
    # Twice `aimed` times the distance between centres: whole numbers, so that rounding comes last.
    if antialias:
        apart = (2 * places + 1) * side - (2 * torch.arange(side).float() + 1) * aimed
        # Reading fewer places than there are widens the kernel; what lies beyond the border is left out.
        weights = _cubic(apart.abs() / (2 * aimed.clamp(min=side)), a=-0.5)
        return weights / weights.sum(1, keepdim=True)
    apart = (2 * places + 1) * side - (2 * torch.arange(-2, side + 2).float() + 1) * aimed
    weights = _cubic(apart.abs() / (2 * aimed), a=-0.75)
    # Beyond the border its last place is repeated.
    first, last = weights[:, :3].sum(1, keepdim=True), weights[:, -3:].sum(1, keepdim=True)
    return torch.cat([first, weights[:, 3:-3], last], dim=1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
