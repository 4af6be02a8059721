"""On an NVIDIA GPU: the eager CPU numbers on every backend, and the truth about where they were computed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import request_for

from exporters import pipeline
from exporters.full_precision import torch_in_full_precision
from exporters.plan import Job
from runtime import load_model
from runtime.backbone import Backbone
from runtime.errors import DeviceError, InputError
from runtime.machine import gpu_capability, gpu_name
from runtime.manifest import Form
from runtime.providers import CPU, CUDA

pytestmark = pytest.mark.gpu

NAME = "test/tiny_vit"
LIMIT = 1e-4  # relative root mean square


@pytest.fixture(autouse=True)
def torch_multiplies_in_full_precision() -> Iterator[None]:
    with torch_in_full_precision():  # products are, by default
        yield


@pytest.fixture(params=["eager", "onnx", "torchscript"])
def options(request: pytest.FixtureRequest, built: Path) -> dict[str, Any]:
    return {"backend": request.param, "weights": "random", "artifacts": built, "on_fallback": "error"}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), dtype=np.float32)


def reference(out_indices: int | None = None) -> Backbone:
    return load_model(NAME, out_indices=out_indices, backend="eager", weights="random", device="cpu")


def distance(got: Any, expected: Any) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_embedding_on_a_gpu_is_the_eager_one_of_the_cpu(options: dict[str, Any], count: int) -> None:
    model = load_model(NAME, device="cuda", **options)

    assert distance(model(images(count)), reference()(images(count))) <= LIMIT
    assert model.device == "cuda:0"


def test_feature_maps_on_a_gpu_are_the_eager_ones_of_the_cpu(options: dict[str, Any]) -> None:
    maps = load_model(NAME, out_indices=2, device="cuda", **options)(images(3))

    for got, expected in zip(maps, reference(2)(images(3)), strict=True):
        assert distance(got, expected) <= LIMIT


def test_onnxruntime_really_runs_on_the_gpu(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cuda", **options)

    assert model.providers == ((CUDA, CPU) if model.backend == "onnx" else ())


def test_without_a_wish_the_gpu_is_taken(options: dict[str, Any]) -> None:
    model = load_model(NAME, **options)

    assert model.device == "cuda:0"
    assert model.info["device_reason"]


def test_a_wish_for_the_cpu_is_granted(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cpu", **options)

    assert model.device == "cpu"
    assert CUDA not in model.providers


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_a_tensor_comes_back_on_its_own_device(options: dict[str, Any], place: str) -> None:
    model = load_model(NAME, device="cuda", **options)

    embedding = model(torch.from_numpy(images(2)).to(place))

    assert embedding.device == torch.device(place)
    assert distance(embedding.cpu().numpy(), reference()(images(2))) <= LIMIT


def test_several_threads_share_a_gpu_backbone(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cuda", **options)
    batches = [images(5, seed) for seed in range(16)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model, batches))

    for got, batch in zip(together, batches, strict=True):
        assert distance(got, model(batch)) <= 1e-6


def test_a_gpu_that_is_not_there_is_an_error(options: dict[str, Any]) -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"

    with pytest.raises(DeviceError, match=beyond if options["backend"] != "onnx" else CUDA):
        load_model(NAME, device=beyond, **options)


@pytest.fixture(scope="module")
def cuda_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the embedding as made for CUDA: every node of it runs there."""
    root = tmp_path_factory.mktemp("cuda")
    job = Job(request_for(NAME, weights="random", artifacts=str(root)), (Form("onnx", "cuda"),))
    assert [outcome.status for outcome in pipeline.build(job)] == ["built"]
    return root


def load_onnx(built: Path, **options: Any) -> Backbone:
    given = {"backend": "onnx", "weights": "random", "artifacts": built, "on_fallback": "error", "device": "cuda"}
    return load_model(NAME, **(given | options))


def on_gpu(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(images(count, seed)).cuda()


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
def test_tensors_of_the_gpu_never_pass_through_the_host(
    graphs: bool, cuda_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_onnx(cuda_graph, **({"cuda_graphs": True, "batch_sizes": (8,)} if graphs else {}))
    given = on_gpu(8)

    def host(*_: Any) -> Any:
        raise AssertionError("a tensor was copied to the host")

    with monkeypatch.context() as patch:
        for name in ("cpu", "numpy", "tolist"):
            patch.setattr(torch.Tensor, name, host)
        outputs = [model(given) for _ in range(3)]

    for output in outputs:
        assert output.device == given.device
        assert distance(output.cpu().numpy(), reference()(images(8))) <= LIMIT


@pytest.mark.parametrize("side", [False, True], ids=["default stream", "side stream"])
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
def test_an_input_still_being_written_by_the_callers_stream_is_awaited(
    side: bool, graphs: bool, cuda_graph: Path
) -> None:
    model = load_onnx(cuda_graph, **({"cuda_graphs": True, "batch_sizes": (8,)} if graphs else {}))
    target, stale = on_gpu(8, seed=1), on_gpu(8, seed=2)
    expected = model(target).cpu().numpy()
    busy = torch.randn(8192, 8192, device="cuda")
    stream = torch.cuda.Stream() if side else torch.cuda.default_stream()

    for _ in range(5):
        given = stale.clone()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(8):
                busy = busy @ busy / 8192  # tens of milliseconds in which the input is not there yet
            given.copy_(target)
            output = model(given)
        torch.cuda.synchronize()
        assert distance(output.cpu().numpy(), expected) <= 1e-6


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
def test_an_output_is_not_overwritten_while_a_stream_still_reads_it(graphs: bool, cuda_graph: Path) -> None:
    model = load_onnx(cuda_graph, **({"cuda_graphs": True, "batch_sizes": (8,)} if graphs else {}))
    batches = [on_gpu(8, seed) for seed in range(20)]
    expected = [model(batch).cpu().numpy() for batch in batches]
    busy = torch.randn(4096, 4096, device="cuda")

    kept = []
    for batch in batches:
        output = model(batch)
        busy = busy @ busy / 4096
        kept.append(output * 1)  # queued behind the product, and the output itself is freed at once
        del output

    for got, own in zip(kept, expected, strict=True):
        assert distance(got.cpu().numpy(), own) <= 1e-6


def test_a_tensor_of_the_gpu_may_have_any_layout(built: Path) -> None:
    model = load_onnx(built)
    expected = model(on_gpu(4)).cpu().numpy()

    for given in (on_gpu(4).to(memory_format=torch.channels_last), on_gpu(4).repeat_interleave(2, 0)[::2]):
        assert distance(model(given.requires_grad_()).cpu().numpy(), expected) <= 1e-6


@pytest.mark.parametrize("count", [1, 5, 8, 20])
def test_batch_sizes_on_a_gpu_change_no_number(count: int, options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cuda", batch_sizes=(1, 8), **options)
    expected = reference()(images(count))

    assert distance(model(images(count)), expected) <= LIMIT
    assert distance(model(on_gpu(count)).cpu().numpy(), expected) <= LIMIT


def test_reused_outputs_of_a_gpu_are_the_same_memory(built: Path) -> None:
    model, plain = load_onnx(built, reuse_outputs=True), load_onnx(built)
    first = model(on_gpu(8, 1))

    second = model(on_gpu(8, 2))

    assert second.data_ptr() == first.data_ptr()
    assert distance(second.cpu().numpy(), plain(images(8, 2))) <= 1e-6
    for seed in (3, 4):
        assert distance(model(images(8, seed)), plain(images(8, seed))) <= 1e-6


@pytest.mark.parametrize("reuse", [False, True])
def test_two_inputs_of_a_cuda_graph_give_two_outputs(cuda_graph: Path, reuse: bool) -> None:
    model = load_onnx(cuda_graph, cuda_graphs=True, batch_sizes=(1, 8), reuse_outputs=reuse)

    for count, seed in ((1, 1), (1, 2), (8, 3), (8, 4), (1, 5), (5, 6), (20, 7), (1, 8)):
        expected = reference()(images(count, seed))
        assert distance(model(images(count, seed)), expected) <= LIMIT
        assert distance(model(on_gpu(count, seed)).cpu().numpy(), expected) <= LIMIT


def test_cuda_graphs_can_be_shared_by_threads(cuda_graph: Path) -> None:
    model = load_onnx(cuda_graph, cuda_graphs=True, batch_sizes=(1, 8))
    batches = [images(1 + seed % 8, seed) for seed in range(32)]
    expected = [model(batch) for batch in batches]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model, batches))

    for got, own in zip(together, expected, strict=True):
        assert distance(got, own) <= 1e-6


def test_a_gpu_memory_limit_is_kept_and_said_when_it_is_too_small(built: Path) -> None:
    model = load_onnx(built, gpu_mem_limit=256 * 1024**2)
    assert model(images(8)).shape == (8, 48)

    with pytest.raises(DeviceError, match=r"batch_sizes=.*gpu_mem_limit"):
        model(images(1 << 16))


def test_a_tensor_of_the_gpu_is_refused_by_a_backbone_on_the_cpu(options: dict[str, Any]) -> None:
    model = load_model(NAME, device="cpu", **options)

    with pytest.raises(InputError, match=r"runs on cpu; got images on cuda:0. Give it images.cpu\(\)"):
        model(on_gpu(2))


def test_the_driver_tells_the_name_and_the_capability_of_the_gpu() -> None:
    assert gpu_name(0) == torch.cuda.get_device_name(0)
    assert gpu_capability(0) == torch.cuda.get_device_capability(0)
    assert gpu_name(torch.cuda.device_count()) is gpu_capability(torch.cuda.device_count()) is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
def test_tensors_of_a_gpu_that_is_not_the_current_one_are_served_there(graphs: bool, cuda_graph: Path) -> None:
    model = load_onnx(cuda_graph, device="cuda:1", **({"cuda_graphs": True, "batch_sizes": (8,)} if graphs else {}))

    output = model(on_gpu(8).to("cuda:1"))

    assert (str(output.device), torch.cuda.current_device()) == ("cuda:1", 0)
    assert distance(output.cpu().numpy(), reference()(images(8))) <= LIMIT


def test_batch_sizes_are_captured_when_loading(cuda_graph: Path) -> None:
    session: Any = load_onnx(cuda_graph, cuda_graphs=True, batch_sizes=(1, 8))._ready()

    assert set(session._graphs._slots) == {(1, 3, 32, 32), (8, 3, 32, 32)}
