"""Loading: with `load="fast"` the weights are used as they lie in the file, in memory that processes share."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime import Backbone, load_model

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 1 << 16
BYTES = 192 * WIDTH * 4

SERVE = """
import json, sys
from pathlib import Path
import numpy as np
from runtime import register_model, registry
from runtime.backends import onnx
from runtime.facts import Preprocessing
from runtime.request import make_request


@register_model("test/large", preprocessing=Preprocessing(size=8))
def large():
    raise AssertionError


def memory():
    found = dict(mapped=0, share=0, own=0)
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = line.endswith("weights.data")
        elif words[0] == "Anonymous:":
            found["own"] += 1024 * int(words[1])
        elif inside and words[0] in ("Rss:", "Pss:"):
            found["mapped" if words[0] == "Rss:" else "share"] += 1024 * int(words[1])
    return found


before = memory()["own"]
options = dict(device="cpu", threads=1, load=sys.argv[2])
session = onnx.load(Path(sys.argv[1]), make_request(registry.find("test/large"), None, options))
total = float(session.run(np.ones((4, 3, 8, 8), np.float32))[0].sum())
print("ready", flush=True)
input()
found = memory()
print(json.dumps(found | dict(own=found["own"] - before, total=total)), flush=True)
input()
"""


def test_the_choice_of_loading_is_told_and_served_by_onnxruntime(built: Path) -> None:
    given: dict[str, Any] = {"weights": "random", "artifacts": built, "device": "cpu", "on_fallback": "error"}

    fast = load_model("test/tiny_vit", load="fast", **given)

    assert (fast.backend, fast.info["load"]) == ("onnx", "fast")
    assert "load='fast': only onnxruntime can do that" in fast.info["measured"]
    assert load_model("test/tiny_vit", backend="openvino", **given).info["load"] == "throughput"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One large matrix, in a file of its own."""
    folder = tmp_path_factory.mktemp("large")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.random.default_rng(0).standard_normal((192, WIDTH), dtype=np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("images", kind, ["batch", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("embedding", kind, [1, 1])]
    body = helper.make_graph(nodes, "large", inputs, outputs, [onnx.numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="weights.data")
    return folder / "large.onnx"


def memory_of_two(graph: Path, how: str) -> list[dict[str, Any]]:
    """Return what two processes that serve at the same time hold in memory."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SERVE, str(graph), how],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        found = []
        for step in range(3):
            for worker in workers:
                assert worker.stdin
                assert worker.stdout
                if step == 0:
                    assert worker.stdout.readline() == "ready\n"
                    continue
                worker.stdin.write("\n")
                worker.stdin.flush()
                if step == 1:
                    found.append(json.loads(worker.stdout.readline()))
        assert [worker.wait(30) for worker in workers] == [0, 0]
        return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_two_processes_that_load_fast_hold_the_weights_once(graph: Path) -> None:
    for memory in memory_of_two(graph, "fast"):
        assert memory["mapped"] >= BYTES
        assert memory["share"] <= 0.6 * BYTES  # half of what is mapped belongs to the other process
        assert memory["own"] <= 0.5 * BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_loading_for_throughput_gives_each_process_a_copy_of_its_own(graph: Path) -> None:
    fast = memory_of_two(graph, "fast")[0]

    for memory in memory_of_two(graph, "throughput"):
        assert memory["own"] >= BYTES
        assert memory["mapped"] == 0
        assert memory["total"] == pytest.approx(fast["total"], rel=1e-3)


@pytest.mark.parametrize("out_indices", [None, 2])
def test_loading_fast_changes_no_number(built: Path, out_indices: int | None) -> None:
    def load(**options: Any) -> Backbone:
        return load_model(
            "test/tiny_vit",
            backend="onnx",
            out_indices=out_indices,
            weights="random",
            artifacts=built,
            on_fallback="error",
            device="cpu",
            **options,
        )

    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    fast = load(load="fast")

    for got, expected in zip(fast(images), load()(images), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    options = fast._ready()._session.get_session_options()  # type: ignore[attr-defined]
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
