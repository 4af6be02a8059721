"""What is written of a traced module is what torch itself would have written, but for the weights."""

import io
import warnings
from pathlib import Path

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

from exporters import to_torchscript
from exporters.pool import WeightPool
from runtime.backends import torchscript
from runtime.manifest import Manifest


def version_of(archive: bytes | Path) -> str:
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive) if isinstance(archive, bytes) else str(archive))
    records = reader.get_all_records()
    (name,) = [record for record in (".data/version", "version") if record in records]
    return reader.get_record(name).decode()


# What torch reads differently in archives of an older version: a true division of sizes (4), gelu's approximation (9).
@pytest.mark.parametrize(
    "module",
    [create_conv2d(3, 4, 3, stride=2, padding="same"), nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())],
    ids=["same padding", "gelu"],
)
def test_a_graph_keeps_the_version_its_operators_were_written_for(module: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 21, 21, generator=torch.Generator().manual_seed(0))
    traced = to_torchscript.export(module.eval(), images)
    plain = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, plain)
        expected = module(images[:1])

    to_torchscript.write(traced, WeightPool(tmp_path, Manifest("test/any"), tmp_path), tmp_path / "graph")

    assert version_of(tmp_path / "graph") == version_of(plain.getvalue())
    with torch.no_grad():
        assert torch.equal(torchscript._read_graph(tmp_path / "graph")(images[:1]), expected)
