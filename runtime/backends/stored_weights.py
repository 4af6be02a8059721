"""Tensors in a model's shared weight data, memory-mapped."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runtime.backends.weight_table import Row


def read(folder: Path, table: Mapping[str, Row]) -> dict[str, Tensor]:
    """Return the tensors of `table`; one that is stored transposed is a transposed view.

    Raises:
        OSError: A weight file cannot be read.
        RuntimeError: A tensor lies outside its file.
    """
    files: dict[str, Tensor] = {}
    return {name: _stored(folder, files, *row) for name, row in table.items()}


def _stored(
    folder: Path,
    files: dict[str, Tensor],
    file: str,
    offset: int,
    shape: list[int],
    transposed: bool,
    dtype: str = "float32",
) -> Tensor:
    if file not in files:
        path = folder / Path(file).name
        # A private mapping: pages are shared with other processes, nothing is copied, nothing can be written back.
        files[file] = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    kind: torch.dtype = getattr(torch, dtype)
    count = kind.itemsize
    for side in shape:
        count *= side
    stored = files[file][offset : offset + count].view(kind)
    return stored.view(shape[::-1]).t() if transposed else stored.view(shape)
