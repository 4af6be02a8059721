"""Which onnxruntime providers are asked for, on which machine, and what is said when they do not come."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import request_for

from runtime.backends import onnx as onnx_backend
from runtime.backends.onnx import OnnxSession, _native_output, load
from runtime.errors import DependencyError, DeviceError
from runtime.machine import cpu_count, nvidia_driver
from runtime.providers import (
    CPU,
    CUDA,
    Installation,
    check_installation,
    choose,
    parse_device,
    precision_obstacle,
    refused,
)
from runtime.request import Request

TENSORRT = "TensorrtExecutionProvider"
GPU_BOX = Installation(("onnxruntime-gpu",), (TENSORRT, CUDA, CPU), driver=True)
NO_DRIVER = Installation(("onnxruntime-gpu",), (TENSORRT, CUDA, CPU), driver=False)
CPU_WHEEL = Installation(("onnxruntime",), (CPU,), driver=False)

no_driver = pytest.mark.skipif(nvidia_driver(), reason="an NVIDIA driver is present: CUDA may start here")
has_cuda = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this onnxruntime was built without CUDA"
)


@pytest.mark.parametrize(
    ("device", "expected"),
    [(None, (None, 0)), ("cpu", ("cpu", 0)), ("cpu:0", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:12", ("cuda", 12))],
)
def test_a_device_is_a_kind_and_an_index(device: str | None, expected: tuple[str | None, int]) -> None:
    assert parse_device(device) == expected


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cuda:-1", "cuda:1:2", "cpu:1", "CUDA", "mps"])
def test_anything_else_is_no_device(device: str) -> None:
    with pytest.raises(DeviceError, match=r"is not a device\. Use None .*'cuda:1'"):
        parse_device(device)


@pytest.mark.parametrize(
    ("device", "providers", "installation", "expected"),
    [
        (None, None, GPU_BOX, ((CUDA, CPU), None, "an NVIDIA driver is present")),
        (None, None, NO_DRIVER, ((CPU,), CPU, "no NVIDIA driver is present")),
        (None, None, CPU_WHEEL, ((CPU,), CPU, "onnxruntime was built without the CUDA provider")),
        ("cpu", None, GPU_BOX, ((CPU,), CPU, "device='cpu' was asked for")),
        ("cuda", None, GPU_BOX, ((CUDA, CPU), CUDA, "device='cuda' was asked for")),
        ("cuda:1", None, GPU_BOX, ((CUDA, CPU), CUDA, "device='cuda:1' was asked for")),
        (None, [CUDA], NO_DRIVER, ((CUDA,), CUDA, "chosen by the caller")),
        (None, (TENSORRT, CUDA), GPU_BOX, ((TENSORRT, CUDA), TENSORRT, "chosen by the caller")),
        ("cuda", [TENSORRT, CUDA], GPU_BOX, ((TENSORRT, CUDA), TENSORRT, "chosen by the caller")),
        ("cpu", [CPU], GPU_BOX, ((CPU,), CPU, "chosen by the caller")),
    ],
)
def test_providers_are_chosen_with_a_reason(
    device: str | None, providers: Any, installation: Installation, expected: tuple[tuple[str, ...], str | None, str]
) -> None:
    choice = choose(device, providers, installation)

    assert (choice.providers, choice.required) == expected[:2]
    assert expected[2] in choice.reason


@pytest.mark.parametrize(
    ("device", "providers", "installation", "words"),
    [
        ("cuda", None, NO_DRIVER, ["device='cuda'", "no NVIDIA driver", "device='cpu'"]),
        ("cuda:1", None, CPU_WHEEL, ["pip uninstall -y onnxruntime", "backbone-runtime[gpu]", f"it has {CPU}"]),
        (None, [], GPU_BOX, ["providers=[] names none", CUDA]),
        (None, ["NPU", CPU], GPU_BOX, ["NPU is not in this onnxruntime", CUDA]),
        ("cuda", [CPU], GPU_BOX, ["device='cuda' contradicts providers"]),
        ("cuda", [CPU, CUDA], GPU_BOX, ["device='cuda' contradicts providers"]),
        ("cpu", [CUDA], GPU_BOX, ["device='cpu' contradicts providers"]),
        ("tpu", [CPU], GPU_BOX, ["is not a device"]),
    ],
)
def test_what_cannot_start_is_refused_with_the_reason(
    device: str | None, providers: Any, installation: Installation, words: list[str]
) -> None:
    with pytest.raises(DeviceError) as caught:
        choose(device, providers, installation)

    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("wheel", ["onnxruntime", "onnxruntime-gpu"])
def test_one_onnxruntime_is_right(wheel: str) -> None:
    check_installation([wheel], importable=True)


def test_an_onnxruntime_built_from_source_needs_no_wheel() -> None:
    check_installation([], importable=True)


@pytest.mark.parametrize(
    ("wheels", "importable", "words"),
    [
        ([], False, r"is not installed\. Run: pip install 'backbone-runtime\[gpu\]'"),
        (["onnxruntime-gpu"], False, "is not installed"),
        (
            ["onnxruntime", "onnxruntime-gpu"],
            True,
            "both installed.*pip uninstall -y onnxruntime onnxruntime-gpu, then",
        ),
    ],
)
def test_no_onnxruntime_or_two_are_refused(wheels: list[str], importable: bool, words: str) -> None:
    with pytest.raises(DependencyError, match=words):
        check_installation(wheels, importable)


WHEN = "2026-01-02 03:04:05.678"
LIBRARY = (
    f"\x1b[0;93m{WHEN} [W:onnxruntime:Default, a.cc:1 f()] No registered plugin EP device found\x1b[m\n"
    f"\x1b[1;31m{WHEN} [E:onnxruntime:Default, b.cc:2 g()] /src/b.cc:3 Get() [ONNXRuntimeError] : 1 : FAIL : "
    "Failed to load library /lib/cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file\n"
    "\x1b[m\n"
    f"\x1b[0;93m{WHEN} [W:onnxruntime:Default, c.cc:4 h()] Failed to create CUDAExecutionProvider. "
    "Require cuDNN 9.*.\x1b[m\n"
)


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        (LIBRARY, "libcublasLt.so.13: cannot open shared object file: No such file. Install"),
        (LIBRARY.splitlines()[-1], "Failed to create CUDAExecutionProvider. Require cuDNN 9.*. Install"),
        (
            f"{WHEN} [E:onnxruntime:Default, d.cc:5 i()] CUDA failure 100: no device\nFailed to",
            "CUDA failure 100: no device. Install",
        ),
        ("\nError: out of memory", "Error: out of memory. Install"),
        ("all is well", "onnxruntime gave no reason. Install"),
        ("", "onnxruntime gave no reason"),
    ],
)
def test_the_most_telling_line_is_quoted_as_the_cause(messages: str, cause: str) -> None:
    text = refused(CUDA, [CPU], messages)

    assert f"could not start {CUDA} and fell back to {CPU}. Cause: {cause}" in text
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in text
    assert "\x1b" not in text


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A model that doubles its input."""
    sides = ["batch", 3, 8, 8]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides) for name in ("images", "double")]
    node = onnx.helper.make_node("Add", ["images", "images"], ["double"])
    body = onnx.helper.make_graph([node], "doubling", values[:1], values[1:])
    path = tmp_path / "doubling.onnx"
    onnx.save(onnx.helper.make_model(body, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    return path


def start(graph: Path, **options: Any) -> OnnxSession:
    return load(graph, request_for("test/own", **options))


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"providers": [CPU]}], ids=["device", "providers"])
def test_a_session_serves_on_the_cpu(graph: Path, options: dict[str, Any]) -> None:
    session = start(graph, **options)

    assert (session.device, session.providers) == ("cpu", (CPU,))
    np.testing.assert_array_equal(session.run(np.ones((2, 3, 8, 8), np.float32)), np.full((1, 2, 3, 8, 8), 2))


def test_threads_reach_the_session(graph: Path) -> None:
    def threads(**options: Any) -> tuple[int, int]:
        options = start(graph, device="cpu", **options)._session.get_session_options()
        return options.intra_op_num_threads, options.inter_op_num_threads

    assert threads(threads=3) == (3, 1)
    assert threads() == (cpu_count(), 1)


def test_more_provider_options_than_providers_are_refused(graph: Path) -> None:
    with pytest.raises(DeviceError, match=f"provider_options has 2 entries for the providers {CPU}: one dict each"):
        start(graph, device="cpu", provider_options=[{}, {}])


@no_driver
def test_without_a_driver_nothing_is_lost_but_the_gpu(graph: Path) -> None:
    session = start(graph)

    assert session.device == "cpu"
    assert "no NVIDIA driver" in session.reason or "built without the CUDA provider" in session.reason


@no_driver
@has_cuda
def test_asking_for_cuda_without_a_driver_is_an_error_that_names_the_driver(graph: Path) -> None:
    with pytest.raises(DeviceError, match=r"device='cuda': no NVIDIA driver is present .* use device='cpu'"):
        start(graph, device="cuda")


@no_driver
@has_cuda
@pytest.mark.parametrize("providers", [[CUDA], [CUDA, CPU]])
def test_a_provider_that_does_not_start_is_an_error_that_quotes_the_missing_library(
    graph: Path, providers: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    library = r"lib[\w.-]+\.so[\d.]*: cannot open shared object file"
    with pytest.raises(DeviceError, match=f"could not start {CUDA} and fell back to {CPU}. Cause: .*{library}"):
        start(graph, providers=providers)

    assert capfd.readouterr() == ("", "")


class OnGpu:
    """What onnxruntime gives where CUDA starts."""

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_options(self) -> dict[str, Any]:
        return {CUDA: {"device_id": "0"}}

    def disable_fallback(self) -> None:
        pass


@pytest.fixture
def gpu_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA starts, whatever the machine; sessions for the CPU are real."""
    create = onnx_backend._create

    def on_gpu(graph: Path, request: Request, providers: list[tuple[str, dict[str, Any]]]) -> Any:
        return (OnGpu(), "", None) if providers[0][0] == CUDA else create(graph, request, providers)

    monkeypatch.setattr(onnx_backend, "_create", on_gpu)
    monkeypatch.setattr(onnx_backend, "look_at_installation", lambda: GPU_BOX)
    monkeypatch.setattr(onnx_backend, "cudnn_obstacle", lambda: None)
    monkeypatch.setattr(onnx_backend, "gpu_capability", lambda index: (9, index))


CUDNN = "libcudnn.so.9: cannot open shared object file: No such file or directory"


@pytest.mark.usefixtures("gpu_box")
def test_a_missing_cudnn_is_seen_when_loading_not_at_the_first_convolution(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(graph).device == "cuda:0"
    monkeypatch.setattr(onnx_backend, "cudnn_obstacle", lambda: CUDNN)

    session = start(graph)
    with pytest.raises(DeviceError, match=f"could not start {CUDA} and fell back to {CPU}. Cause: {CUDNN}. Install"):
        start(graph, device="cuda")
    with pytest.raises(DeviceError, match=f"cuda_graphs=True: .* Cause: {CUDNN}"):
        start(graph, backend="onnx", cuda_graphs=True, batch_sizes=(1,))

    assert session.device == "cpu"
    assert f"fell back to {CPU}. Cause: {CUDNN}" in session.reason
    assert session.run(np.ones((2, 3, 8, 8), np.float32))[0].shape == (2, 3, 8, 8)


@pytest.mark.usefixtures("gpu_box")
def test_whatever_keeps_cudnn_from_loading_is_told(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_backend, "cudnn_obstacle", lambda: "libcudnn.so.9: invalid ELF header")

    with pytest.raises(DeviceError, match=r"Cause: .*libcudnn\.so\.9: invalid ELF header\. Install"):
        start(graph, device="cuda")


def test_an_onnxruntime_that_is_too_old_for_a_graph_is_no_damaged_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"unknown to it")
    [wheel] = onnx_backend.onnxruntime_distributions()
    monkeypatch.setattr(onnx_backend, "OLDEST", "9999.1")

    with pytest.raises(
        DependencyError, match=rf"{wheel} [\d.]+ cannot load .*9999.1 or newer. Run: pip install -U {wheel}"
    ):
        start(graph, device="cpu")


@pytest.mark.usefixtures("gpu_box")
def test_bf16_on_a_gpu_without_it_is_refused_when_loading(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(graph, precision="bf16", device="cuda:1").device == "cuda:0"
    monkeypatch.setattr(onnx_backend, "gpu_capability", lambda index: (7, 4 + index))

    with pytest.raises(DeviceError, match=r"precision='bf16': this GPU has compute capability 7\.5, and .*'fp16'"):
        start(graph, precision="bf16", device="cuda:1")

    assert start(graph, precision="fp16").device == "cuda:0"


@pytest.mark.parametrize(
    ("precision", "capability", "runs"),
    [
        ("bf16", (7, 5), False),
        ("bf16", (8, 0), True),
        ("bf16", (12, 0), True),
        ("bf16", None, True),
        ("fp16", (7, 5), True),
        ("fp32", (5, 0), True),
    ],
)
def test_bfloat16_takes_an_ampere(precision: str, capability: tuple[int, int] | None, runs: bool) -> None:
    assert (precision_obstacle(precision, capability) is None) is runs


@pytest.mark.usefixtures("gpu_box")
@pytest.mark.parametrize(("dtype", "image"), [("float32", (3, 32, 32)), ("uint8", (32, 32, 3))])
def test_every_batch_size_is_captured_when_loading(
    graph: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, image: tuple[int, ...]
) -> None:
    runs: list[tuple[str, tuple[int, ...]]] = []
    monkeypatch.setattr(OnnxSession, "run", lambda self, images: runs.append((str(images.dtype), images.shape)))

    load(graph, request_for("test/tiny_vit", backend="onnx", cuda_graphs=True, batch_sizes=(1, 8), input=dtype))

    assert runs == [(dtype, (1, *image)), (dtype, (8, *image))]


def test_catching_onnxruntimes_words_leaves_the_process_its_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.fstat(2)
    first_inside, second_inside, first_done = (threading.Event() for _ in range(3))

    def second() -> None:
        first_inside.wait(5)
        with _native_output():
            second_inside.set()
            first_done.wait(5)

    other = threading.Thread(target=second)
    other.start()
    with _native_output() as words:
        first_inside.set()
        second_inside.wait(0.2)  # it must not get in before this one is out
        os.write(2, b"native")
        print("python")
    first_done.set()
    other.join()

    assert words == ["nativepython\n"]
    assert os.path.samestat(os.fstat(2), before)
    os.write(2, b"still here")
    assert capfd.readouterr() == ("", "still here")
