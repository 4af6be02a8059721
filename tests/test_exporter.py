"""One export, written in several forms: what they share is made once, and so is its failure."""

from pathlib import Path

import pytest
import torch
from conftest import request_for
from torch import nn

from exporters.exporter import Exporter
from exporters.plan import Job
from exporters.pool import WeightPool
from exporters.reference import make_references
from runtime.eager import EagerModel
from runtime.errors import ExportError
from runtime.manifest import Form, Manifest

FORMS = (Form("onnx", "cpu"), Form("onnx", "cuda"))

# Not an attribute of the module: the exporter undoes what it sees happen to those.
CALLS: list[int] = []


class Stubborn(nn.Module):
    """Runs, and cannot be exported: what it does depends on the values it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        CALLS.append(1)
        columns = images.mean((1, 2))
        return self.layer(columns if float(columns.abs().max()) < 100 else -columns)


def test_a_failed_export_is_told_for_each_form_and_not_tried_again(tmp_path: Path) -> None:
    module = Stubborn().eval()
    model, job = EagerModel(module, None), Job(request_for("test/own"), FORMS)
    exporter = Exporter(job, "onnx", model, make_references(job.request, model, FORMS))
    pool = WeightPool(tmp_path, Manifest("test/own"), tmp_path)
    before = len(CALLS)
    told, calls = [], []

    for form in FORMS:
        with pytest.raises(ExportError, match="could not export it") as failure:
            exporter.write(form, pool, tmp_path / "graph.part")
        told.append(str(failure.value))
        calls.append(len(CALLS))

    assert before < calls[0] == calls[1]
    assert told[0] == told[1]
