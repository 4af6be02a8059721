"""Memory for the outputs of a session, of the right shape before it runs."""

import threading
from typing import Any

import numpy as np


def names_of(session: Any) -> tuple[str, list[str]]:
    """Return the names of a session's input and of its outputs."""
    return session.get_inputs()[0].name, [output.name for output in session.get_outputs()]


class OutputMemory:
    """Gives memory for outputs, once a run has shown their shapes for images of that size.

    An output has as many rows as the batch has images. With `reuse` every thread gets the same memory again, in the
    length of its largest batch.
    """

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._like: dict[tuple[int, ...], list[Any]] = {}
        self._own = threading.local()

    def take(self, images: Any) -> list[Any] | None:
        """Return arrays for the outputs of `images`; `None` until `learn` was told of images of this size."""
        size, count = tuple(images.shape[1:]), len(images)
        like = self._like.get(size)
        if like is None:
            return None
        if not self._reuse:
            return [empty(output, count) for output in like]
        kept = self._kept()
        if size not in kept or len(kept[size][0]) < count:
            kept[size] = [empty(output, count) for output in like]
        return [output[:count] for output in kept[size]]

    def learn(self, images: Any, outputs: list[Any]) -> None:
        """Take the shapes of the outputs of `images`; with `reuse` also these outputs themselves."""
        size = tuple(images.shape[1:])
        self._like[size] = [empty(output, 0) for output in outputs]
        if self._reuse:
            self._kept()[size] = outputs

    def _kept(self) -> dict[tuple[int, ...], list[Any]]:
        if not hasattr(self._own, "kept"):
            self._own.kept = {}
        kept: dict[tuple[int, ...], list[Any]] = self._own.kept
        return kept


def empty(output: Any, count: int) -> Any:
    """Return memory for `count` rows like those of `output`, an array or a tensor."""
    shape = (count, *output.shape[1:])
    return np.empty(shape, output.dtype) if isinstance(output, np.ndarray) else output.new_empty(shape)
