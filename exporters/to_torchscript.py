"""Eager module -> TorchScript graph without weights; the weights go to the model's shared pool.

torch.jit is deprecated since torch 2.11: its use is kept to this file and `runtime/backends/torchscript.py`.
"""

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from exporters.placement import place
from exporters.pool import WeightPool
from runtime.backends.weight_table import TABLE
from runtime.errors import ExportError

# Records that torch's writer adds by itself.
_VERSIONS = (".data/version", "version")
_AUTOMATIC = (*_VERSIONS, "byteorder", ".data/serialization_id")


def export(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Return the traced module; it shares its parameters with `module`.

    Raises:
        ExportError: torch could not trace the module.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, (example,), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ExportError(f"torch.jit could not trace it: {type(error).__name__}: {error}") from error
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def write(traced: torch.jit.ScriptModule, pool: WeightPool, path: Path) -> list[str]:
    """Write the graph to `path` and its weights to the pool; return the weight files it reads.

    The traced module (and the eager one behind it) is emptied of its weights.
    """
    tensors = {
        name: tensor
        for name, tensor in [*traced.named_parameters(), *traced.named_buffers()]
        if tensor.dtype == torch.float32
    }
    table = place(tensors, pool)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.data = torch.empty(0)
    _save(traced, json.dumps(table, sort_keys=True), path)
    return sorted({row[0] for row in table.values()})


def _save(traced: torch.jit.ScriptModule, table: str, path: Path) -> None:
    """Save without `.debug_pkl` records: they hold the source paths of the machine that traced."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer, _extra_files={TABLE: table})
    buffer.seek(0)
    reader = torch._C.PyTorchFileReader(buffer)
    # Written through a file object the archive gets a neutral name: rebuilds stay identical.
    with path.open("wb") as file:
        writer = torch._C.PyTorchFileWriter(file)
        records = reader.get_all_records()
        # By the version torch knows what its operators mean: of an older one it would read a division as another.
        stated = next(record for record in _VERSIONS if record in records)
        writer.set_min_version(int(reader.get_record(stated)))
        for record in records:
            if not record.endswith(".debug_pkl") and record not in _AUTOMATIC:
                data = reader.get_record(record)
                writer.write_record(record, data, len(data))
        writer.write_end_of_file()
