"""On an NVIDIA GPU: every form that is made for one, however it is run there, keeps the limits of its gate."""

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import request_for

from exporters import pipeline
from exporters.full_precision import torch_in_full_precision
from exporters.gate import LIMITS, gate
from exporters.parity import compare
from exporters.plan import Job
from runtime import load_model
from runtime.manifest import Form
from runtime.providers import CPU, CUDA
from runtime.tensorrt import TENSORRT

pytestmark = pytest.mark.gpu

NAME = "test/tiny_vit"
GRAPHS = {"cuda_graphs": True, "batch_sizes": (8, 1)}
FORMS = (
    *(Form("onnx", "cuda", precision) for precision in ("fp32", "fp16", "bf16")),
    *(Form("onnx", "cuda", precision, "uint8") for precision in ("fp32", "fp16")),
    *(Form("pt2", "cuda", precision) for precision in ("fp32", "fp16", "bf16")),
)


@pytest.fixture(autouse=True, scope="module")
def torch_multiplies_in_full_precision() -> Iterator[None]:
    with torch_in_full_precision():  # products are, by default
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the embedding in every form for GPUs, as far as they could be built."""
    root = tmp_path_factory.mktemp("forms")
    for format in ("onnx", "pt2"):
        forms = tuple(form for form in FORMS if form.format == format)
        outcomes = pipeline.build(Job(request_for(NAME, weights="random", artifacts=str(root)), forms))
        print(*outcomes, sep="\n")  # pytest shows it beside each form that could not be built
    return root


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_build_on_a_gpu_verifies_it_there(form: Form, root: Path) -> None:
    artifacts = json.loads((root / NAME / "manifest.json").read_text())["artifacts"]
    keys = ("format", "target", "precision", "input")

    [found] = [a for a in artifacts if Form(*(a["key"].get(key, "float32") for key in keys)) == form]

    assert found["parity"]["served_by"] == (f"onnx {CUDA}" if form.format == "onnx" else "pt2")


def given(form: Form, count: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(count)
    if form.input == "uint8":
        return random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return random.standard_normal((count, 3, 32, 32), dtype=np.float32)


def check(form: Form, root: Path, precision: str, **options: Any) -> None:
    """Serve batches of arrays and of the GPU's own tensors, and hold them to the limits of a precision."""
    chosen: dict[str, Any] = {"weights": "random", "input": form.input}
    reference = load_model(NAME, backend="eager", device="cpu", **chosen)
    served: dict[str, Any] = {"backend": form.format, "precision": form.precision, "artifacts": root, "device": "cuda"}
    model = load_model(NAME, on_fallback="error", **chosen, **served, **options)
    batches = [given(form, count) for count in (1, 3, 8, 20)]

    arrays = [[model(batch)] for batch in batches]
    tensors = [[model(torch.from_numpy(batch).cuda()).cpu().numpy()] for batch in batches]

    expected = [[reference(batch)] for batch in batches]
    for outputs in (arrays, tensors):
        assert {array.dtype for [array] in outputs} == {np.dtype(np.float32)}
        gate(compare(["embedding"], expected, outputs), LIMITS[precision, 2])
    assert model.device == "cuda:0"
    if form.format == "onnx":
        assert model.providers[0] == options.get("providers", [CUDA])[0]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_keeps_the_limits_of_its_precision(form: Form, root: Path) -> None:
    check(form, root, form.precision)


@pytest.mark.parametrize("form", [form for form in FORMS if form.format == "onnx"], ids=str)
def test_it_keeps_them_as_a_cuda_graph(form: Form, root: Path) -> None:
    check(form, root, form.precision, **GRAPHS)


@pytest.mark.parametrize("sizes", [{}, {"batch_sizes": (8, 1)}], ids=["any batch", "batch sizes"])
@pytest.mark.parametrize("form", [Form("onnx", "cuda", "fp32"), Form("onnx", "cuda", "fp16")], ids=str)
def test_it_keeps_them_in_tensorrt(
    form: Form, sizes: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        pytest.skip("no TensorRT: libnvinfer.so.10 cannot be loaded")
    if TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {TENSORRT}")
    monkeypatch.setattr("runtime.backends.onnx.user_cache", lambda: tmp_path)

    # It multiplies float32 in TF32, which has the digits of fp16.
    check(form, root, "fp16", providers=[TENSORRT, CUDA, CPU], **sizes)

    assert any((tmp_path / "tensorrt").rglob("*.engine"))
