"""Backends: each module here has one function, `load`, which returns a `Session`."""

from typing import Any, Protocol


class Session(Protocol):
    """A loaded model that can be run.

    Attributes:
        device: Where it really runs: `cpu` or `cuda:<index>`.
        providers: onnxruntime's execution providers, in the order it really uses; empty for torch.
        native: What `run` takes and returns: `numpy` arrays or `torch` tensors. Tensors of a GPU that a session runs on
            are taken, and given, by every session.
        reason: Why it runs there.
    """

    device: str
    providers: tuple[str, ...]
    native: str
    reason: str

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for a checked batch."""
        ...
