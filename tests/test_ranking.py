"""The order of `backend="auto"`, and that what it follows was really measured."""

from pathlib import Path
from typing import Any

import pytest
from conftest import request_for

from runtime import load_model, ranking
from runtime.errors import DependencyError
from runtime.manifest import Artifact, Form, Manifest, StoredFile
from runtime.selection import select

NAME = "test/tiny_vit"
MEASURED: dict[str, Any] = {
    "source": "a report",
    "ranking": {
        "cpu": {"fp32": [{"backend": b, "times_eager": t} for b, t in (("pt2", 1.5), ("eager", 1), ("onnx", 0.9))]}
    },
}


def test_what_was_measured_faster_comes_first_and_eager_last() -> None:
    assert ranking.order("cpu", "fp32", MEASURED) == ("pt2", "onnx", "openvino", "torchscript", "eager")


@pytest.mark.parametrize(("pt2", "first"), [(1.05, "onnx"), (1.2, "pt2")])
def test_a_little_faster_is_as_fast(pt2: float, first: str) -> None:
    entries = [{"backend": "pt2", "times_eager": pt2}, {"backend": "onnx", "times_eager": 1.0}]

    assert ranking.order("cpu", "fp32", {"source": "", "ranking": {"cpu": {"fp32": entries}}})[0] == first


@pytest.mark.parametrize(("device", "precision"), [("cuda", "fp32"), ("cpu", "bf16")])
def test_what_was_not_measured_keeps_its_order(device: str, precision: str) -> None:
    assert ranking.order(device, precision, MEASURED) == ranking.UNMEASURED
    assert ranking.reason("onnx", device, precision, MEASURED) is None


def test_the_reason_gives_the_numbers_and_where_they_come_from() -> None:
    reason = ranking.reason("pt2", "cpu", "fp32", MEASURED)

    assert reason == "fp32 on cpu, times the speed of eager fp32: pt2 1.5, eager 1, onnx 0.9 (a report)"


def test_auto_follows_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "measurements", lambda: MEASURED)
    request = request_for(NAME, weights="random")
    forms = (Form("onnx"), Form("pt2"))
    manifest = Manifest(NAME, tuple(Artifact(request.key(f), (StoredFile("g", 1, ""),), (), ()) for f in forms))

    assert select(request, manifest, {}, lambda _: "cpu").backend == "pt2"
    assert select(request, manifest, {"pt2": DependencyError("torch is missing")}, lambda _: "cpu").backend == "onnx"


def test_a_loaded_backbone_tells_the_measurements(built: Path) -> None:
    model = load_model(NAME, weights="random", artifacts=built, device="cpu", backend="onnx")

    assert model.info["measured"] == ranking.reason("onnx", "cpu", "fp32")
