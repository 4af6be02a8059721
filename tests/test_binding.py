"""Sessions bound to memory: tensors in and out without a copy, outputs in the same memory again, fixed addresses.

Here the CPU stands for the GPU: the same code, the same calls of onnxruntime. What only a GPU has is in test_cuda.py.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import request_for

from runtime import Backbone, load_model
from runtime.backends.onnx import graphs_refused, images_at_once
from runtime.backends.onnx import load as open_graph
from runtime.backends.onnx_graphs import CapturedGraphs
from runtime.backends.onnx_memory import OutputMemory
from runtime.backends.onnx_session import OnnxSession, run_failed
from runtime.backends.onnx_tensors import run_tensors
from runtime.contract import Contract
from runtime.errors import BackendFallbackWarning, DeviceError, InputError, OptionError
from runtime.providers import CPU, CUDA, Choice


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def load(built: Path, **options: Any) -> Backbone:
    given = {"backend": "onnx", "weights": "random", "artifacts": built, "on_fallback": "error", "device": "cpu"}
    return load_model("test/tiny_vit", **(given | options))


@pytest.fixture(scope="module")
def model(built: Path) -> Backbone:
    return load(built)


@pytest.fixture
def session(model: Backbone) -> onnxruntime.InferenceSession:
    return model._ready()._session  # type: ignore[attr-defined]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda tensor: tensor,
    "channels last": lambda tensor: tensor.to(memory_format=torch.channels_last),
    "every second": lambda tensor: tensor.repeat_interleave(2, 0)[::2],
    "with a gradient": lambda tensor: tensor.clone().requires_grad_(),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 5])
def test_tensors_go_through_a_session_as_tensors(layout: str, count: int, session: Any, model: Backbone) -> None:
    memory = OutputMemory(reuse=False)
    expected = model(images(count).numpy())

    for _ in range(3):  # the first run learns the shapes, the others write where they are told
        (output,) = run_tensors(session, LAYOUTS[layout](images(count)), memory)
        np.testing.assert_array_equal(output.numpy(), expected)
        assert (type(output), output.requires_grad) == (torch.Tensor, False)


def test_outputs_of_tensors_stay_what_they_are_unless_memory_is_reused(session: Any) -> None:
    memory = OutputMemory(reuse=False)
    run_tensors(session, images(2), memory)
    (first,) = run_tensors(session, images(2, seed=1), memory)
    kept = first.clone()

    (second,) = run_tensors(session, images(2, seed=2), memory)

    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_a_tensor_in_one_block_is_read_where_it_lies(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = []
    make = onnxruntime.OrtValue.from_dlpack
    monkeypatch.setattr(onnxruntime.OrtValue, "from_dlpack", lambda tensor: bound.append(make(tensor)) or bound[-1])
    memory = OutputMemory(reuse=True)
    given = images(3)

    run_tensors(session, given, memory)
    (output,) = run_tensors(session, given, memory)

    assert [value.data_ptr() for value in bound] == [given.data_ptr(), given.data_ptr(), output.data_ptr()]


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone], ids=["numpy", "torch"])
@pytest.mark.parametrize("out_indices", [None, 2])
def test_reused_outputs_are_overwritten_by_the_next_call_and_right_each_time(
    built: Path, out_indices: int | None, convert: Callable[[torch.Tensor], Any]
) -> None:
    plain = load(built, out_indices=out_indices)
    reusing = load(built, out_indices=out_indices, reuse_outputs=True)

    def outputs(backbone: Backbone, count: int, seed: int) -> list[Any]:
        got = backbone(convert(images(count, seed)))
        return [got] if out_indices is None else got

    first = outputs(reusing, 4, 1)
    for count, seed in ((4, 2), (2, 3), (4, 4), (1, 5)):
        got = outputs(reusing, count, seed)
        for one, other, old in zip(got, outputs(plain, count, seed), first, strict=True):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(old[:count], one)  # its memory: what was in it is gone
    larger = outputs(reusing, 6, 6)
    for one, other in zip(larger, outputs(plain, 6, 6), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_thread_reuses_memory_of_its_own(built: Path) -> None:
    plain, reusing = load(built), load(built, reuse_outputs=True)

    def check(seed: int) -> None:
        for step in range(20):
            given = images(3, seed * 100 + step).numpy()
            np.testing.assert_array_equal(reusing(given), plain(given))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(4)))


def test_reused_outputs_and_batch_sizes_go_together(built: Path) -> None:
    model = load(built, reuse_outputs=True, batch_sizes=(2, 4))

    for count in (1, 4, 11):
        np.testing.assert_allclose(model(images(count).numpy()), load(built)(images(count).numpy()), atol=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone], ids=["numpy", "torch"])
def test_memory_that_never_moves_gives_each_input_its_own_output(
    reuse: bool, convert: Callable[[torch.Tensor], Any], session: Any, model: Backbone
) -> None:
    graphs = CapturedGraphs(session, "cpu", reuse_outputs=reuse)

    for count, seed in ((2, 1), (2, 2), (5, 3), (2, 4), (5, 5)):
        (output,) = graphs.run(convert(images(count, seed)))
        assert isinstance(output, type(convert(images(1))))
        np.testing.assert_array_equal(output, model(images(count, seed).numpy()))


def test_outputs_copied_out_of_fixed_memory_stay_what_they_are(session: Any) -> None:
    graphs = CapturedGraphs(session, "cpu", reuse_outputs=False)
    for convert in (torch.Tensor.numpy, torch.Tensor.clone):
        (first,) = graphs.run(convert(images(2, 1)))
        kept = first + 0

        graphs.run(convert(images(2, 2)))

        np.testing.assert_array_equal(first, kept)


def test_each_batch_size_has_one_graph_of_its_own(session: Any) -> None:
    graphs = CapturedGraphs(session, "cpu", reuse_outputs=False)

    for count in (1, 8, 1, 8, 8):
        graphs.run(images(count).numpy())

    options = [slot.options.get_run_config_entry("gpu_graph_id") for slot in graphs._slots.values()]
    assert options == ["1", "2"]


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone], ids=["numpy", "torch"])
def test_all_graphs_are_captured_and_replayed_on_one_thread(
    convert: Callable[[torch.Tensor], Any], session: Any
) -> None:
    ran: list[threading.Thread] = []

    class Watched(Slow):
        def run_with_iobinding(self, *arguments: Any) -> None:
            ran.append(threading.current_thread())
            super().run_with_iobinding(*arguments)

    graphs = CapturedGraphs(Watched(session), "cpu", reuse_outputs=False)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(graphs.run, [convert(images(1 + seed % 2, seed)) for seed in range(6)]))
    graphs.run(convert(images(1)))

    assert len(ran) == 2 + 7  # a run without capture for each of two sizes
    assert len(set(ran)) == 1


class Slow:
    """A session that leaves other threads time to spoil its images before it reads them."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        time.sleep(0.01)
        self._session.run_with_iobinding(*arguments)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone], ids=["numpy", "torch"])
def test_threads_that_share_fixed_memory_do_not_mix_their_images(
    convert: Callable[[torch.Tensor], Any], session: Any, model: Backbone
) -> None:
    graphs = CapturedGraphs(Slow(session), "cpu", reuse_outputs=False)
    batches = [images(2, seed) for seed in range(12)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(graphs.run, map(convert, batches)))

    for (output,), batch in zip(together, batches, strict=True):
        np.testing.assert_array_equal(output, model(batch.numpy()))


@pytest.mark.parametrize(("device", "says"), [("cpu", r"images.cpu\(\)"), ("cuda:0", r"images.to\('cuda:0'\)")])
def test_a_tensor_of_another_device_is_refused_in_words(device: str, says: str) -> None:
    contract = Contract(request_for("test/tiny_vit").spec, (32, 32))
    elsewhere = SimpleNamespace(
        dtype="torch.float32", shape=(2, 3, 32, 32), layout=torch.strided, device=torch.device("cuda:1")
    )

    with pytest.raises(InputError, match=f"runs on {device}; got images on cuda:1. Give it {says}, or load"):
        contract.check(elsewhere, True, device)


def test_images_that_do_not_fit_into_memory_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    helper = onnx.helper
    sides = ["batch", 3, 8, 8]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides) for name in ("images", "huge")]
    shape = onnx.numpy_helper.from_array(np.array([1 << 44, 3, 8, 8]), "shape")
    node = helper.make_node("Expand", ["images", "shape"], ["huge"])
    body = helper.make_graph([node], "expanding", values[:1], values[1:], [shape])
    path = tmp_path / "expanding.onnx"
    onnx.save(helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    session = open_graph(path, request_for("test/own", device="cpu"))

    with pytest.raises(DeviceError, match=r"images on cpu: Failed to allocate memory .*batch_sizes=\(1, 8\)\)\.$"):
        session.run(np.ones((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(RuntimeError("no such device"), DeviceError), (ValueError("a bug"), ValueError), (KeyError("x"), KeyError)],
)
def test_what_onnxruntime_raises_when_it_binds_memory_is_told_as_its_own(
    raised: Exception, expected: type[Exception], session: Any
) -> None:
    class Failing(Slow):
        def run(self, *_: Any) -> Any:
            raise raised

    served = OnnxSession(Failing(session), "cuda:0", "")

    with pytest.raises(expected, match=str(raised)) as error:
        served.run(images(1).numpy())

    assert (error.value.__cause__ is raised) is (expected is DeviceError)


def test_only_a_lack_of_memory_is_answered_with_advice_about_memory() -> None:
    assert "gpu_mem_limit" in run_failed(8, "cuda:0", "Available memory of 1 is smaller than requested bytes of 2")
    assert "gpu_mem_limit" not in run_failed(8, "cpu", "Failed to allocate memory")
    assert run_failed(8, "cuda:0", "CUDA failure 700") == (
        "onnxruntime could not run 8 images on cuda:0: CUDA failure 700."
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cuda_graphs": True, "backend": "onnx"}, "cuda_graphs=True captures one graph for each of batch_sizes"),
        (
            {"cuda_graphs": True, "backend": "onnx", "batch_sizes": (8,), "image_size": "dynamic"},
            "no image_size='dynamic'",
        ),
        (
            {"cuda_graphs": True, "batch_sizes": (8,)},
            "cuda_graphs: only the onnx backend can do that, not backend='auto'",
        ),
        ({"gpu_mem_limit": 1 << 30}, "gpu_mem_limit: only the onnx backend can do that, not backend='auto'"),
        ({"cuda_graphs": 1}, "cuda_graphs=1 must be True or False"),
        ({"reuse_outputs": "yes"}, "reuse_outputs='yes' must be True or False"),
        ({"gpu_mem_limit": 0}, "gpu_mem_limit=0 must be bytes"),
        ({"gpu_mem_limit": "8GB"}, "gpu_mem_limit='8GB' must be bytes"),
        ({"load": "lazy"}, "load='lazy' is none of 'throughput', 'fast'"),
        ({"backend": "eager", "load": "fast"}, "load: only the onnx backend can do that, not backend='eager'"),
        (
            {"backend": "torchscript", "reuse_outputs": True, "gpu_mem_limit": 1},
            "reuse_outputs, gpu_mem_limit: only the onnx backend can do that, not backend='torchscript'",
        ),
    ],
)
def test_options_of_a_session_that_cannot_be_are_refused_in_words(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as error:
        load_model("test/tiny_vit", **options)

    assert said in str(error.value)


@pytest.mark.parametrize("backend", ["auto", "onnx"])
def test_what_falls_back_to_torch_still_serves(tmp_path: Path, backend: str, model: Backbone) -> None:
    options = {"load": "fast", "reuse_outputs": True, "batch_sizes": (4,), "device": "cpu"}

    with pytest.warns(BackendFallbackWarning):
        eager = load_model("test/tiny_vit", backend=backend, weights="random", artifacts=tmp_path, **options)

    assert eager.backend == "eager"
    np.testing.assert_allclose(eager(images(3)), model(images(3)), rtol=0, atol=1e-5)


def test_a_gpu_memory_limit_on_a_cpu_is_an_error_that_says_what_to_do(built: Path) -> None:
    with pytest.raises(
        DeviceError, match=f"gpu_mem_limit=1024 needs {CUDA}, but device='cpu' was asked for. Load it without gpu"
    ):
        load(built, gpu_mem_limit=1024)


def test_cuda_graphs_on_a_cpu_are_an_error_that_says_what_to_do(built: Path) -> None:
    with pytest.raises(
        DeviceError, match=f"cuda_graphs=True needs {CUDA}, but device='cpu' was asked for. Load it wit"
    ):
        load(built, cuda_graphs=True, batch_sizes=(1, 8))


def test_a_graph_that_cannot_be_captured_is_told_apart_from_a_gpu_that_does_not_start() -> None:
    choice = Choice((CUDA, CPU), CUDA, "")
    mixed = "EP Error This session cannot use the graph capture feature as requested by the user as all compute graph"

    assert "--target cuda" in graphs_refused(choice, (CPU,), mixed)
    assert f"could not start {CUDA}" in graphs_refused(choice, (CPU,), "Error: out of memory")


class Counted:
    """A real session that remembers how many images each of its runs had."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.runs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feed: dict[str, Any]) -> Any:
        self.runs.append(len(next(iter(feed.values()))))
        return self._session.run(names, feed)

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        self.runs.append(len(binding.get_outputs()[0].numpy()))


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize(("count", "runs"), [(1, [1]), (2, [2]), (5, [2, 2, 1]), (6, [2, 2, 2])])
def test_a_cpu_runs_a_batch_a_few_images_at_once(count: int, runs: list[int], reuse: bool, session: Any) -> None:
    counted = Counted(session)
    served = OnnxSession(counted, "cpu", "", at_once=2, reuse_outputs=reuse)
    given = images(count).numpy()
    parts = [session.run(None, {"images": given[row : row + 2]})[0] for row in range(0, count, 2)]

    for _ in range(3):  # the first batch of a size learns the shapes
        counted.runs.clear()
        (output,) = served.run(given)
        np.testing.assert_array_equal(output, np.concatenate(parts))
        assert counted.runs == runs


def test_batches_served_in_parts_keep_memory_of_their_own_unless_it_is_reused(session: Any) -> None:
    for reuse in (False, True):
        served = OnnxSession(session, "cpu", "", at_once=2, reuse_outputs=reuse)
        served.run(images(5).numpy())
        (first,), (second,) = served.run(images(5, seed=1).numpy()), served.run(images(5, seed=2).numpy())
        assert np.shares_memory(first, second) is reuse


@pytest.mark.parametrize(
    ("device", "threads", "sizes", "at_once"),
    [("cpu", 2, None, 2), ("cpu", 16, None, 16), ("cpu", 2, (1, 8), None), ("cuda:0", 2, None, None)],
)
def test_a_cpu_takes_one_image_per_thread_where_no_batch_sizes_were_asked_for(
    device: str, threads: int, sizes: tuple[int, ...] | None, at_once: int | None
) -> None:
    assert images_at_once(device, threads, sizes) == at_once


def test_loading_for_a_cpu_limits_the_images_at_once_to_its_threads(built: Path) -> None:
    limits = [load(built, **given)._ready()._at_once for given in ({"threads": 3}, {"threads": 3, "batch_sizes": (8,)})]  # type: ignore[attr-defined]
    assert limits == [3, None]
