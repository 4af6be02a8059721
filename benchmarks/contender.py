"""Ways to serve a backbone, each in a process of its own that waits to be asked.

Two runtimes in one process would disturb each other: onnxruntime's threads spin for a while after a run.
"""

import importlib.abc
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from benchmarks import ways

WITHOUT_TORCH = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "safetensors")


class ContenderError(RuntimeError):
    """A contender cannot be loaded, or failed in a call; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way to serve a backbone.

    Attributes:
        label: How the report names it.
        model: Registry name.
        options: Keywords of `load_model`, or of another way.
        blocked: Packages that its process cannot import.
        way: Function of `benchmarks.ways` that loads it.
        libraries: What is imported before loading is timed.
        images: What it is given: `float32` [B, C, H, W] or `uint8` [B, H, W, 3].
    """

    label: str
    model: str
    options: Mapping[str, Any]
    blocked: tuple[str, ...] = ()
    way: str = "runtime"
    libraries: tuple[str, ...] = field(default=(), kw_only=True)
    images: str = field(default="float32", kw_only=True)


class _Blocker(importlib.abc.MetaPathFinder):
    """Makes the import of some packages fail, as where they are not installed."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if name.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"{name} is blocked in this process", name=name)
        return None


def block(packages: Sequence[str]) -> None:
    """Make every later import of `packages` fail in this process."""
    loaded = [name for name in packages if name in sys.modules]
    if loaded:
        raise RuntimeError(f"{', '.join(loaded)} imported before it could be blocked")
    sys.meta_path.insert(0, _Blocker(packages))


class Runner:
    """A contender's process, loaded and waiting.

    Attributes:
        about: What the way tells of itself (backend, device, ...), `load_seconds` and `torch_imported`.
    """

    def __init__(self, contender: Contender) -> None:
        """Start the process and wait until it is loaded.

        Raises:
            ContenderError: It cannot be loaded here.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._images: object = None
        try:
            self.about: dict[str, Any] = self._receive()
        except ContenderError:
            self.close()
            raise

    def run(self, images: NDArray[Any]) -> tuple[float, list[NDArray[Any]]]:
        """Return the seconds one call took, and its outputs."""
        seconds = self.time(images)
        outputs: list[NDArray[Any]] = self._ask("outputs")
        return seconds, outputs

    def time(self, images: NDArray[Any], calls: int = 1) -> float:
        """Return the mean seconds of `calls` calls; images travel to the process once, before the clock starts."""
        if self._images is not images:
            self._ask("images", images)
            self._images = images
        seconds: float = self._ask("time", calls)
        return seconds

    def peak_mb(self) -> float:
        """Return the largest resident memory of the process so far, in megabytes."""
        peak: float = self._ask("peak_mb")
        return peak

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, question: str, argument: Any = None) -> Any:
        try:
            self._pipe.send((question, argument))
        except OSError as error:
            raise self._dead() from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            failed, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._dead() from error
        if failed:
            raise ContenderError(answer)
        return answer

    def _dead(self) -> ContenderError:
        self._process.join(timeout=10)
        return ContenderError(f"its process ended with status {self._process.exitcode} (-9: memory ran out)")


def _serve(contender: Contender, pipe: Connection) -> None:
    """Body of a contender's process."""
    try:
        block(contender.blocked)
        served, seconds = ways.load_timed(contender.way, contender.model, contender.options, contender.libraries)
        about = {**served.about, "load_seconds": seconds, "torch_imported": "torch" in sys.modules}
    except Exception as error:
        pipe.send((True, ways.reason(error)))
        return
    pipe.send((False, about))
    answers = _Answers(served)
    while True:
        try:
            question, argument = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, getattr(answers, question)(argument)))
        except Exception as error:
            pipe.send((True, ways.reason(error)))


class _Answers:
    """What a contender's process does when it is asked; one method per question."""

    def __init__(self, served: ways.Served) -> None:
        self._served = served
        self._images: Any = None
        self._output: Any = None

    def images(self, array: NDArray[Any]) -> None:
        self._images, self._output = self._served.to_input(array), None

    def time(self, calls: int) -> float:
        self._served.wait()
        started = time.perf_counter()
        for _ in range(calls):
            self._output = self._served.call(self._images)
            self._served.wait()
        return (time.perf_counter() - started) / calls

    def outputs(self, _: None) -> list[NDArray[Any]]:
        return self._served.to_arrays(self._output)

    def peak_mb(self, _: None) -> float:
        return ways.peak_resident_mb()


@contextmanager
def runners(contenders: Sequence[Contender]) -> Iterator[dict[str, Runner]]:
    """Give the contenders' processes, and end them."""
    made: dict[str, Runner] = {}
    try:
        for contender in contenders:
            made[contender.label] = Runner(contender)
        yield made
    finally:
        for runner in made.values():
            runner.close()
