"""Backbones timed side by side, each in a process of its own, in turns.

Two runtimes in one process would disturb each other: onnxruntime's threads spin for a while after a run. In turns,
because a shared machine drifts: every round measures all contenders, and ratios are taken round by round.
"""

import importlib.abc
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

WITHOUT_TORCH = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "safetensors")


@dataclass(frozen=True)
class Contender:
    """One way to serve a backbone.

    Attributes:
        label: How the report names it.
        model: Registry name.
        options: Keywords of `load_model`.
        blocked: Packages that its process cannot import.
    """

    label: str
    model: str
    options: Mapping[str, Any]
    blocked: tuple[str, ...] = ()


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
    """A contender's process, loaded and waiting."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.about: dict[str, Any] = self._receive()

    def run(self, images: NDArray[np.float32]) -> tuple[float, list[NDArray[np.float32]]]:
        """Return the seconds one call took, and its outputs."""
        self._pipe.send(images)
        seconds, outputs = self._receive()
        return seconds, outputs

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _receive(self) -> Any:
        message = self._pipe.recv()
        if isinstance(message, Exception):
            raise message
        return message


def _serve(contender: Contender, pipe: Connection) -> None:
    """Body of a contender's process."""
    try:
        block(contender.blocked)
        from runtime import load_model

        model = load_model(contender.model, on_fallback="error", **contender.options)
        pipe.send({"backend": model.backend, "device": model.device, "torch_imported": "torch" in sys.modules})
        while True:
            images = pipe.recv()
            started = time.perf_counter()
            output = model(images)
            seconds = time.perf_counter() - started
            pipe.send((seconds, output if isinstance(output, list) else [output]))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


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


def in_turns(
    made: Mapping[str, Runner], images: NDArray[np.float32], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of each round for each runner: A B C, A B C, ... after `warmup` rounds that do not count.

    Within a round each runner makes one call that does not count: it wakes its threads while the others' go to sleep.
    """
    seconds: dict[str, list[float]] = {label: [] for label in made}
    for number in range(warmup + rounds):
        for label, runner in made.items():
            runner.run(images)
            elapsed, _ = runner.run(images)
            if number >= warmup:
                seconds[label].append(elapsed)
    return seconds


def ratios(of: Sequence[float], over: Sequence[float]) -> tuple[float, float, float]:
    """Return smallest, median and largest of `over / of`, taken round by round: how many times faster `of` is."""
    by_round = [slow / fast for fast, slow in zip(of, over, strict=True)]
    return min(by_round), median(by_round), max(by_round)
