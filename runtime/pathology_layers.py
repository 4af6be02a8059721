"""What pathology encoders put behind or in front of a timm trunk."""

from torch import Tensor, nn
from torch.nn import functional as F


class UnitLength(nn.Module):
    """Scales each embedding [B, D] to length 1."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the embedding over its Euclidean norm."""
        return F.normalize(embedding, dim=-1)
