"""Where the weights of a torch artifact are stored: the model's shared pool, each once for all formats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.pool import Slice, WeightPool
from runtime.backends.weight_table import Row


def place(tensors: Mapping[str, Tensor], pool: WeightPool) -> dict[str, Row]:
    """Return where each tensor is stored. A matrix that an ONNX graph stored transposed is not stored again."""
    turned = ((name, tensor.detach().t()) for name, tensor in tensors.items() if tensor.ndim == 2)
    found = ((name, pool.find(array(tensor))) for name, tensor in turned)
    transposed = {name: piece for name, piece in found if piece is not None}
    straight = [name for name in tensors if name not in transposed]
    placed = pool.place(array(tensors[name]) for name in straight)
    stored = dict(zip(straight, placed, strict=True))
    return {name: _row(tensor, transposed.get(name), stored.get(name)) for name, tensor in tensors.items()}


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the values as an array; of bfloat16, which numpy does not know, the bytes."""
    plain = tensor.detach().cpu().contiguous()
    return (plain.view(torch.uint8) if plain.dtype == torch.bfloat16 and plain.ndim else plain).numpy()


def _row(tensor: Tensor, transposed: Slice | None, stored: Slice | None) -> Row:
    piece = transposed or stored
    assert piece is not None
    dtype = str(tensor.dtype).removeprefix("torch.")
    return piece.file, piece.offset, list(tensor.shape), transposed is not None, dtype
