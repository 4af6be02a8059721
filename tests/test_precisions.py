"""Lower precisions from the build to the served numbers, on the architectures that differ in what they need."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builds import TINY, run_command
from conftest import request_for
from outliers import inject_outliers
from small_architectures import ARCHITECTURES, SIDE, images, make
from torch import nn

from exporters import pipeline
from exporters.plan import Job, Outcome, plan
from runtime import load, load_model, register_model, registry
from runtime.artifacts import Store
from runtime.errors import DeviceError, PrecisionWarning
from runtime.facts import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from runtime.manifest import Form
from runtime.preprocess import normalise

FORMS = (
    Form("onnx"),
    Form("onnx", "cpu", "bf16"),
    Form("onnx", "cpu", "int8"),
    Form("onnx", "cuda", "fp16"),
    Form("onnx", "cuda", "bf16"),
    Form("onnx", "cpu", "fp32", "uint8"),
    Form("onnx", "cpu", "int8", "uint8"),
    Form("onnx", "cuda", "fp16", "uint8"),
)
FACTS = Preprocessing(size=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))  # the registry forgets it again

    def add(name: str, module: nn.Module) -> str:
        register_model(name, preprocessing=FACTS)(lambda: module)
        return name

    return add


def build(name: str, root: Path, forms: tuple[Form, ...] = FORMS) -> list[Outcome]:
    return pipeline.build(Job(request_for(name, artifacts=str(root)), forms))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_precision_passes_its_gate_and_serves(architecture: str, register: Any, tmp_path: Path) -> None:
    name = register("test/small", make(architecture))

    outcomes = build(name, tmp_path)

    assert [o.status for o in outcomes] == ["built"] * len(FORMS), outcomes
    given: dict[str, Any] = {"artifacts": tmp_path, "device": "cpu", "on_fallback": "error"}
    batch = images(3).numpy()
    expected = load_model(name, backend="onnx", **given)(batch)
    for backend, precision in (("onnx", "int8"), ("openvino", "int8"), ("openvino", "bf16")):
        got = load_model(name, backend=backend, precision=precision, **given)(batch)
        assert got.dtype == np.float32
        assert not np.array_equal(got, expected)
        assert smallest_cosine(got, expected) > 0.99
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    normalised = load_model(name, backend="onnx", **given)(normalise(pictures, FACTS))
    for precision, cosine in (("fp32", 0.999999), ("int8", 0.99)):
        got = load_model(name, backend="onnx", precision=precision, input="uint8", **given)(pictures)
        assert smallest_cosine(got, normalised) > cosine


def smallest_cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def test_the_manifest_tells_what_stayed_in_float32_and_what_was_reached(register: Any, tmp_path: Path) -> None:
    module = make("plain ViT")
    inject_outliers(module, stream=30_000, hidden=2_000)
    name = register("test/outlying", module)

    [outcome] = build(name, tmp_path, (Form("onnx", "cuda", "fp16"),))

    assert outcome.status == "built", outcome.note
    [artifact] = json.loads((tmp_path / name / "manifest.json").read_text())["artifacts"]
    assert artifact["half"]["largest"]["magnitude"] > 16_000
    assert {entry["reason"] for entry in artifact["half"]["float32"]} & {"range"}, artifact["half"]
    [parity] = artifact["parity"]["outputs"]
    assert parity["min_cosine"] >= 0.9995
    assert artifact["parity"]["served_by"] == "emulated on the CPU, every value rounded"


def test_what_a_lower_precision_cannot_hold_is_not_published(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make("plain ViT")
    inject_outliers(module, stream=30_000, hidden=120_000)
    name = register("test/overflowing", module)
    monkeypatch.setattr("exporters.half.islands.MARGIN", 1e-9)  # nothing is held to need float32

    [outcome] = build(name, tmp_path, (Form("onnx", "cuda", "fp16"),))

    assert outcome.status == "failed"
    assert "not finite" in outcome.note
    assert not (tmp_path / name / "manifest.json").exists()


@pytest.mark.parametrize(("precision", "device"), [("fp16", "cpu"), ("bf16", "cpu")])
def test_a_precision_that_the_device_cannot_run_is_an_error_that_names_one_that_can(
    precision: str, device: str, built: Path
) -> None:
    given: dict[str, Any] = {"weights": "random", "artifacts": built, "backend": "onnx"}

    with pytest.raises(DeviceError, match=rf"cannot run precision='{precision}' on device='{device}'.*runs fp32, int8"):
        load_model("test/tiny_vit", precision=precision, device=device, **given)


@pytest.mark.parametrize(("calibration", "kind"), [(None, "static"), ("none", "dynamic")])
def test_int8_ranges_are_constants_or_taken_from_each_batch(
    calibration: str | None, kind: str, register: Any, tmp_path: Path
) -> None:
    name = register("test/ranges", make("plain ViT"))
    job = Job(request_for(name, artifacts=str(tmp_path)), (Form("onnx", "cpu", "int8"),), calibration=calibration)

    [outcome] = pipeline.build(job)

    assert outcome.status == "built", outcome.note
    [artifact] = json.loads((tmp_path / name / "manifest.json").read_text())["artifacts"]
    assert artifact["int8"]["quantisation"] == kind
    [step] = plan(job, Store(tmp_path))
    assert (step.action, step.reason) == ("skip", "up to date")
    [step] = plan(replace(job, calibration=None if calibration else "none"), Store(tmp_path))
    assert (step.action, step.reason.split()[:2]) == ("build", ["stale:", "calibration"])


def test_int8_on_a_cpu_that_saturates_is_served_with_a_warning(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register("test/saturating", make("plain ViT"))
    pipeline.build(Job(request_for(name, artifacts=str(tmp_path)), (Form("onnx", "cpu", "int8"),), calibration="none"))
    given: dict[str, Any] = {"artifacts": tmp_path, "device": "cpu", "precision": "int8", "on_fallback": "error"}
    monkeypatch.setattr(load, "cpu_flags", lambda: frozenset(("avx2",)))

    for backend in ("onnx", "openvino"):
        with pytest.warns(PrecisionWarning, match=r"none of VNNI, AMX .* python -m exporters.verify test/saturating"):
            load_model(name, backend=backend, **given)


def test_calibration_images_that_are_not_there_are_told(register: Any, tmp_path: Path) -> None:
    name = register("test/uncalibrated", make("plain ViT"))
    job = Job(request_for(name, artifacts=str(tmp_path)), (Form("onnx", "cpu", "int8"),), calibration=str(tmp_path))

    [outcome] = pipeline.build(job)

    assert outcome.status == "failed"
    assert str(tmp_path) in outcome.note


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--precision", "int8", "--calibration", "nowhere"),
            "nowhere does not exist. Name a folder .* or leave",
        ),
        (
            ("--calibration", "nowhere"),
            "--calibration=nowhere: only int8 is calibrated, and none is asked for. Add",
        ),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_before_anything_is_loaded(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    ran = run_command("test/tiny_vit", *TINY, "--format", "onnx", "--artifacts", tmp_path / "store", *arguments)

    assert ran.status == 2
    assert re.search(said, ran.err), ran.err
    assert not (tmp_path / "store").exists()
