"""What a build, and a verification, leave behind in memory before the next begins."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import request_for
from torch.multiprocessing.reductions import StorageWeakRef

from exporters import pipeline, published
from exporters.plan import Job, Outcome
from exporters.reference import load_eager
from runtime.eager import EagerModel
from runtime.manifest import Form
from runtime.request import Request

FREEING = """
import re
from pathlib import Path
from exporters import memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
bytearray(24_000_000)  # from the first large block that is freed on, such blocks come from the heap
before = resident()
held = [(b"x" * (4_000_000 + n), b"y" * (50_000 + n)) for n in range(100)]
held = [small for _, small in held]  # lie between the large ones, so that the heap cannot shrink by itself
freed = resident()
memory.give_back()
print(freed - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells resident memory in /proc")
def test_freed_weights_go_back_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", FREEING], capture_output=True, text=True, check=True)
    kept, left = map(int, re.findall(r"-?\d+", ran.stdout))

    assert kept > 300, "freed memory was not kept in the first place"
    assert left < 100


class Weights:
    """Watches the memory of the eager weights that a module of the builder loads, and counts what is left of them."""

    def __init__(self, builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self._storages: list[StorageWeakRef] = []
        monkeypatch.setattr(builder, "load_eager", self._load)

    def _load(self, request: Request) -> EagerModel:
        model = load_eager(request)
        tensors = [*model.module.parameters(), *model.module.buffers()]
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return model

    def left(self) -> int:
        assert self._storages
        return sum(not storage.expired() for storage in self._storages)


def job(root: Path, *forms: Form, task: str = "build") -> Job:
    return Job(request_for("test/tiny_vit", weights="random", artifacts=str(root)), forms, task=task)


def watch(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what will be the number of eager weights in memory at the beginning of each verification."""
    weights, left, measure = Weights(builder, monkeypatch), [], builder.measure

    def counted(*arguments: Any) -> Any:
        left.append(weights.left())
        return measure(*arguments)

    monkeypatch.setattr(builder, "measure", counted)
    return left


def assert_done(outcomes: list[Outcome], status: str) -> None:
    assert {outcome.status for outcome in outcomes} == {status}, outcomes


def test_no_eager_weight_is_left_when_artifacts_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = watch(pipeline, monkeypatch)

    assert_done(pipeline.build(job(tmp_path, Form("onnx"), Form("onnx", "cuda"))), "built")

    assert set(left) == {0}


def test_no_eager_weight_is_left_when_what_is_published_is_verified(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = watch(published, monkeypatch)

    assert_done(published.verify(job(built, Form("onnx"), task="verify")), "verified")

    assert set(left) == {0}
