"""backend="openvino": the numbers of the ONNX artifacts on CPUs, in the precision asked for."""

import json
import os
import shutil
import subprocess
import sys
import time
import weakref
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
from runtime.backends.openvino_session import OpenvinoSession, images_each
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
print(openvino.new_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
try:
    openvino.load(Path(sys.argv[1]), request)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}  # what OpenVINO then takes the CPU for
    command = [sys.executable, "-c", code, str(graph(built))]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path} | older, capture_output=True, check=True)

    told = ran.stdout.splitlines()
    if b"BF16" in told[0]:
        pytest.skip("this OpenVINO cannot be told to take the CPU for an older one")
    kind, message = json.loads(told[-1])

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


def test_an_openvino_that_is_too_old_is_refused_before_it_starts(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "OLDEST", "9999.1")
    monkeypatch.setattr(openvino, "new_core", lambda: pytest.fail("started"))

    with pytest.raises(DependencyError, match=r"openvino 9999\.1 or newer; this is [\d.]+\. Run: pip install -U "):
        serve(built)
    assert serve(built, backend="auto").backend == "onnx"


def test_running_out_of_memory_while_a_batch_is_compiled_for_is_told(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    compile_ = session._compile

    def failing(streams: int) -> Any:
        raise RuntimeError("Exception from src/x.cpp:1:\nstd::bad_alloc\n")

    session._compile = failing
    with pytest.raises(DeviceError, match=r"once more, for 2 at a time: std::bad_alloc\. Load it with batch_sizes="):
        session.run(images(4))

    session._compile = compile_
    np.testing.assert_allclose(session.run(images(4))[0], serve(built, threads=1)(images(4)), rtol=1e-4, atol=1e-5)


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
    alone = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=1))
    spread = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    for count in (2, 1, 1):
        spread.run(images(count))

    for compiled, threads, streams in ((alone._together, 1, 1), (spread._together, 2, 1), (spread._apart, 2, 2)):
        assert compiled is not None
        assert compiled.graph.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.graph.get_property("NUM_STREAMS") == streams
        assert compiled.graph.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize(
    ("count", "threads", "each"),
    [
        (9, 1, None),
        (1, 2, None),
        (2, 2, 1),
        (3, 2, None),  # one thread would wait while the other takes its second image
        (5, 2, 3),
        (8, 2, 4),
        (9, 2, 3),
        (32, 2, 4),
        (16, 16, 1),
        (17, 16, None),
        (63, 16, 4),
    ],
)
def test_a_batch_is_spread_over_the_threads_where_few_of_them_wait(count: int, threads: int, each: int | None) -> None:
    assert images_each(count, threads) == each


@pytest.mark.parametrize(
    ("sizes", "count", "together", "apart"),
    [(None, 9, [], [3, 3, 3]), (None, 8, [], [4, 4]), (None, 1, [1], []), ((16,), 9, [16], []), ((3,), 9, [3] * 3, [])],
)
def test_batches_run_apart_unless_sizes_were_asked_for(
    built: Path, sizes: tuple[int, ...] | None, count: int, together: list[int], apart: list[int]
) -> None:
    model = serve(built, threads=2, batch_sizes=sizes)
    session: Any = model._ready()
    runs: dict[str, list[int]] = {"infer": [], "start_async": []}

    class Counted:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            called = getattr(self.inner, name)
            if name not in runs:
                return called
            return lambda feed, **options: (runs[name].append(len(feed[0])), called(feed, **options))[1]

    compiled, at_once = session._chosen(small=not apart)
    compiled._idle.append(Counted(compiled._new()))
    given = images(count)

    output = model(given)

    assert at_once is bool(apart)
    assert (runs["infer"], runs["start_async"]) == (together, apart)
    alone = serve(built, threads=1)
    for row in range(count):
        np.testing.assert_allclose(output[row : row + 1], alone(given[row : row + 1]), rtol=1e-4, atol=1e-5)


def compilations(session: OpenvinoSession) -> list[int]:
    """Return the inferences side by side of each graph that a session compiles from here on."""
    compile_, made = session._compile, []
    session._compile = lambda streams: (made.append(streams), compile_(streams))[1]
    return made


def test_the_first_batch_replaces_what_was_compiled_when_loading(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    assert session._together is not None
    at_load, compile_, there = weakref.ref(session._together.graph), session._compile, []
    session._compile = lambda streams: (there.append(at_load() is not None), compile_(streams))[1]
    session.run(images(1))

    session.run(images(4))

    assert there == [False], "what was compiled for single images is gone before batches are compiled for"


def test_a_second_graph_is_compiled_by_the_first_batch_only_and_once(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    made = compilations(session)

    session.run(images(1))
    assert made == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(session.run, [images(4, seed) for seed in range(8)]))

    assert made == [2]


def test_a_single_image_between_batches_compiles_nothing(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    made = compilations(session)
    expected = serve(built, threads=1)

    for count in (4, 1, 4, 3, 4, 1):
        given = images(count)
        np.testing.assert_allclose(session.run(given)[0], expected(given), rtol=1e-4, atol=1e-5)

    assert made == [2]


def test_single_images_in_a_row_after_batches_are_compiled_for_once_and_batches_kept(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    made = compilations(session)

    for count in (4, 1, 1, 1, 4, 1, 4):
        session.run(images(count))

    assert made == [2, 1]


def test_a_request_in_use_while_batches_take_over_keeps_nothing_in_memory(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    compiled, _ = session._chosen(small=True)
    at_load = weakref.ref(compiled.graph)

    with compiled.idle():
        session.run(images(4))
    del compiled

    assert at_load() is None


def test_a_session_is_gone_with_its_last_user(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))
    for count in (4, 1, 1):
        session.run(images(count))
    assert session._apart is not None
    gone = weakref.ref(session._apart.graph)

    del session

    assert gone() is None


def test_batches_are_served_though_the_graph_was_pruned_meanwhile(built: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(graph(built).parent, tmp_path / "copied")
    session = openvino.load(copied / graph(built).name, request_for(NAME, backend="openvino", threads=2))
    shutil.rmtree(copied)

    assert session.run(images(4))[0].shape[0] == 4


def test_outputs_of_a_batch_are_not_kept(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))

    [output] = session.run(images(4))
    gone = weakref.ref(output)
    del output

    deadline = time.monotonic() + 10  # OpenVINO's threads let go of what they called a moment after the result is there
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone() is None


def test_a_batch_that_openvino_cannot_run_leaves_a_session_that_can(built: Path) -> None:
    session = openvino.load(graph(built), request_for(NAME, backend="openvino", threads=2))

    with pytest.raises(Exception, match="shape"):
        session.run(np.zeros((4, 3, 31, 32), np.float32))

    given = images(4)
    np.testing.assert_allclose(session.run(given)[0], serve(built, threads=1)(given), rtol=1e-4, atol=1e-5)


FORKED = """
import faulthandler, os
import numpy as np
import tiny_backbones
from runtime import load_model
model = load_model({name!r}, backend="openvino", weights="random", artifacts={artifacts!r}, threads=2)
images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
for count in {counts}:
    expected = model(images[:count])
if not os.fork():
    faulthandler.dump_traceback_later(60, exit=True)
    np.testing.assert_allclose(model(images[: {counts}[-1]]), expected, rtol=1e-4, atol=1e-5)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]) + 7)
"""


@pytest.mark.parametrize("counts", [(1,), (4,), (4, 1)])
def test_a_forked_process_serves_after_single_images_and_batches(built: Path, counts: tuple[int, ...]) -> None:
    assert exit_status(FORKED, built, counts=counts) == 7


INTERRUPTED = """
import gc, os, signal, threading
import tiny_backbones
from runtime import load_model
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
served = [load_model({name!r}, backend="openvino", weights="random", artifacts={artifacts!r}, on_fallback="error")]
served[0]._ready()
def drop():
    served.clear()
    gc.collect()
thread = threading.Thread(target=drop)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    os._exit(7)
"""


def test_ctrl_c_after_another_thread_let_go_of_a_session_is_no_crash(built: Path) -> None:
    assert exit_status(INTERRUPTED, built) == 7


def exit_status(script: str, built: Path, **given: Any) -> int:
    """Return how a process of its own ends that serves what was built."""
    code = script.format(name=NAME, artifacts=str(built), **given)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=120).returncode
