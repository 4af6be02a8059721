"""backend="openvino": the numbers of the ONNX artifacts on CPUs, in the precision asked for."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_architectures as small
import torch
from conftest import request_for

from exporters import to_onnx
from exporters.images import Images
from exporters.pool import WeightPool
from runtime import Backbone, load_model
from runtime.artifacts import Store
from runtime.backends import openvino
from runtime.errors import ArtifactCorruptError, BackendFallbackWarning, DependencyError, DeviceError
from runtime.manifest import Form, Manifest

NAME = "test/tiny_vit"
ROOT = Path(__file__).resolve().parent.parent


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), dtype=np.float32)


def serve(built: Path, backend: str = "openvino", **options: Any) -> Backbone:
    return load_model(NAME, backend=backend, weights="random", artifacts=built, on_fallback="error", **options)


def graph(built: Path) -> Path:
    """Return the ONNX graph of the embedding."""
    store = Store(built)
    [artifact] = [a for a in store.read(NAME).artifacts if a.key.form == Form("onnx") and a.key.out_indices is None]
    return store.folder(NAME) / artifact.graph.name


def distance(got: Any, expected: Any) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def capabilities() -> list[str]:
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # type: ignore[no-any-return]


needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no bf16 instructions")


def test_bf16_that_this_cpu_does_not_have_is_left_to_the_next_backend(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(openvino.PRECISIONS, "bf16", ("INSTRUCTIONS OF ANOTHER CPU", "bf16"))
    given: dict[str, Any] = {"weights": "random", "artifacts": built, "precision": "bf16", "device": "cpu"}

    with pytest.warns(BackendFallbackWarning, match=r"(?s)No pt2 artifact .* --precision=bf16.*\nUntil then eager"):
        model = load_model(NAME, **given)

    assert model.backend == "eager"
    assert "backend='openvino' cannot run it: this CPU has no instructions for it" in model.info["fallback"]
    with pytest.raises(DeviceError, match="backend='openvino' cannot run it: this CPU has no instructions"):
        load_model(NAME, backend="openvino", **given)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_embedding_is_the_eager_one_at_any_batch(built: Path, count: int) -> None:
    model = serve(built)

    assert distance(model(images(count)), serve(built, "eager")(images(count))) < 1e-5
    assert (model.backend, model.device, model.providers) == ("openvino", "cpu", ())


def test_feature_maps_come_in_the_order_of_eager(built: Path) -> None:
    maps, expected = (serve(built, backend, out_indices=2)(images(3)) for backend in ("openvino", "eager"))

    assert [m.shape for m in maps] == [m.shape for m in expected]
    assert all(distance(got, wanted) < 1e-5 for got, wanted in zip(maps, expected, strict=True))


@pytest.mark.parametrize("name", small.ARCHITECTURES)
def test_architectures_keep_their_numbers(name: str, tmp_path: Path) -> None:
    module = small.make(name)
    program = to_onnx.export(module, small.images(2), ["embedding"], None)
    model, _ = to_onnx.derive(program, Form("onnx"), Images(request_for(NAME)))
    to_onnx.write(model, WeightPool(tmp_path, Manifest(NAME), tmp_path), tmp_path / "graph.onnx", {})

    session = openvino.load(tmp_path / "graph.onnx", request_for(NAME, backend="openvino"))

    for count in (1, 5):
        with torch.no_grad():
            expected = module(small.images(count)).numpy()
        assert distance(session.run(small.images(count).numpy())[0], expected) < 1e-5


@needs_bf16
def test_bf16_is_computed_in_bf16_and_returned_in_float32(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", precision="bf16"))

    [got] = session.run(images(8))

    expected = serve(built, "eager")(images(8))
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert got.dtype == np.float32
    assert cosines.min() > 0.9995
    assert distance(got, expected) > 1e-4, "that is float32"


@pytest.mark.parametrize(
    ("precision", "possible", "words"),
    [
        ("bf16", ["FP32", "INT8"], "this CPU has no instructions for it. Possible here: fp32, int8."),
        ("fp16", ["FP32", "FP16", "BF16", "INT8"], "it has none for CPUs. Possible here: fp32, bf16, int8."),
    ],
)
def test_a_precision_that_cannot_run_is_refused_with_those_that_can(
    precision: str, possible: list[str], words: str
) -> None:
    with pytest.raises(DeviceError, match=f"precision='{precision}': backend='openvino' cannot run it: {words}"):
        openvino.precision_hint(precision, possible)


def test_a_cpu_without_bf16_is_told_so(built: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from runtime import registry
from runtime.backends import openvino
from runtime.request import make_request
import tiny_backbones
request = make_request(registry.find("test/tiny_vit"), None, {"backend": "openvino", "precision": "bf16"})
try:
    openvino.load(Path(sys.argv[1]), request)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}  # what OpenVINO then takes the CPU for
    command = [sys.executable, "-c", code, str(graph(built))]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path} | older, capture_output=True, check=True)

    kind, message = json.loads(ran.stdout.splitlines()[-1])

    assert kind == "DeviceError"
    assert "precision='bf16': backend='openvino' cannot run it" in message
    assert "Possible here: fp32, int8" in message


def test_a_gpu_is_refused(built: Path) -> None:
    with pytest.raises(DeviceError, match=r"device='cuda:1': backend='openvino' serves CPUs\. Use device='cpu', or"):
        openvino.load(graph(built), request_for(NAME, backend="openvino", device="cuda:1"))


def test_a_missing_openvino_is_named_with_what_to_install(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "installed", lambda _: False)

    with pytest.raises(DependencyError, match=r"pip install 'backbone-runtime\[openvino\]'"):
        openvino.load(graph(built), request_for(NAME, backend="openvino"))


@pytest.mark.parametrize("which", ["graph", "weights"])
def test_what_cannot_be_read_is_corrupt(which: str, built: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(graph(built).parent, tmp_path / "copied") / graph(built).name
    for path in [copied] if which == "graph" else tmp_path.glob("copied/*.data"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(ArtifactCorruptError) as caught:
        openvino.load(copied, request_for(NAME, backend="openvino"))

    assert str(caught.value).startswith(f"OpenVINO cannot load {copied}: ")
    assert ("parsed" if which == "graph" else "weights.") in str(caught.value)


def test_outputs_belong_to_the_caller(built: Path) -> None:
    model = serve(built)

    first = model(images(2, seed=1))
    kept = first.copy()
    second = model(images(2, seed=2))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0

    np.testing.assert_array_equal(model(images(2, seed=2)), second)
    assert not np.array_equal(kept, second)


def test_threads_that_share_a_backbone_get_their_own_numbers(built: Path) -> None:
    model = serve(built, threads=2)
    batches = [images(1 + seed % 3, seed) for seed in range(24)]
    alone = [model(batch) for batch in batches]

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(model, batches))

    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_number_of_threads_is_the_one_asked_for_and_none_is_pinned(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=1))

    assert session._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert session._compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize(("sizes", "runs"), [(None, [4, 4, 1]), ((16,), [16])])
def test_a_batch_runs_two_images_per_thread_at_once_unless_sizes_were_asked_for(
    built: Path, sizes: tuple[int, ...] | None, runs: list[int]
) -> None:
    model = serve(built, threads=2, batch_sizes=sizes)
    session: Any = model._ready()
    compiled, seen = session._compiled, []

    class Counted:
        def __init__(self) -> None:
            self.request = compiled.create_infer_request()

        def infer(self, feed: dict[int, Any], **options: Any) -> Any:
            seen.append(len(feed[0]))
            return self.request.infer(feed, **options)

    session._idle.append(Counted())
    given = images(9)

    output = model(given)

    assert seen == runs
    np.testing.assert_array_equal(output[:4], serve(built, threads=2)(given[:4]))
    np.testing.assert_allclose(output[8:], serve(built, threads=2)(given[8:]), rtol=1e-4, atol=1e-5)
