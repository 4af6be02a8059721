"""What load_model returns: images in, embedding or feature maps out, whatever serves them."""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from runtime import batches
from runtime.backends import Session
from runtime.contract import Contract
from runtime.errors import ClosedError, OptionError
from runtime.manifest import Artifact
from runtime.request import NOT_OF_ONNXRUNTIME, Request
from runtime.selection import preference


class Backbone:
    """A loaded backbone.

    Call it with float32 images [B, C, H, W] (volumes [B, C, D, H, W]): a numpy array gives numpy arrays, a torch tensor
    gives torch tensors on its own device; those of the GPU that serves never pass through the host. Any layout in
    memory will do; what is not contiguous is copied first. Without `out_indices` the result is the embedding [B, D];
    with it, a list of maps [B, C, h, w] (of volumes [B, C, d, h, w]).

    It can be pickled, deep-copied, sent to spawned or forked workers (each makes a session of its own) and called
    from several threads at once.

    Attributes:
        name: Registry name.
        backend: What really serves: `onnx`, `openvino`, `pt2`, `torchscript` or `eager`.
    """

    def __init__(
        self,
        request: Request,
        backend: str,
        artifact: Artifact | None,
        open_session: Callable[[Request, str, Artifact | None], Session],
        fallback: str | None = None,
    ) -> None:
        # The request that gives this very backbone again, without another fallback.
        self._request = replace(request, backend=backend, **({} if backend == "onnx" else NOT_OF_ONNXRUNTIME))
        self._artifact = artifact
        self._open_session = open_session
        self._fallback = fallback
        self._lock = threading.Lock()
        self._closed = False
        self._contract = Contract(request.spec, request.size, request.input)
        self._session: Session | None = open_session(self._request, backend, artifact)
        self.name = request.spec.name
        self.backend = backend
        _alive.add(self)

    def __call__(self, images: Any) -> Any:
        """Return the embedding, or the list of feature maps.

        Raises:
            InputError: Wrong type, dtype, byte order, rank, channels, size, an empty batch, or another GPU's tensor.
            DeviceError: onnxruntime could not run the batch, most often for lack of memory.
            ClosedError: After `close()`.
        """
        session = self._ready()
        is_tensor = _is_tensor(images)
        self._contract.check(images, is_tensor, session.device)
        given, sizes = _given(images, session, is_tensor), self._request.batch_sizes
        outputs = session.run(given) if sizes is None else batches.serve(given, sizes, session.run)
        converted = [_like(output, images, is_tensor) for output in outputs]
        return converted[0] if self._request.out_indices is None else converted

    def _ready(self) -> Session:
        session = self._session
        if session is not None:
            return session
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} was closed. Load it again with load_model({self.name!r}).")
            if self._session is None:
                self._session = self._open_session(self._request, self.backend, self._artifact)
            return self._session

    def _forget_session(self) -> None:
        self._lock = threading.Lock()
        if self._session is not None:
            if self._session.native == "torch":  # OpenMP's threads stay behind, too: as in torch's own data loaders
                sys.modules["torch"].set_num_threads(1)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None

    def preprocess(self, images: Any) -> np.ndarray[Any, Any]:
        """Return model input for Pillow images or uint8 arrays [H, W, 3] (one or several).

        That is float32 [B, C, H, W], or what was loaded with `input="uint8"` takes: uint8 [B, H, W, 3].

        Raises:
            InputError: Not such images, or the publisher declares no normalisation.
        """
        from runtime.preprocess import preprocess, resize  # Pillow is not needed to serve

        size = self._request.size
        make = resize if self._request.input == "uint8" else preprocess
        return make(images, self._request.spec.preprocessing, None if isinstance(size, str) else (size[0], size[1]))

    @property
    def device(self) -> str:
        """Where it really runs: `cpu` or `cuda:<index>`."""
        return self._ready().device

    @property
    def providers(self) -> tuple[str, ...]:
        """Onnxruntime's execution providers as really used, most preferred first; empty for torch."""
        return self._ready().providers

    @property
    def module(self) -> Any:
        """The `torch.nn.Module` behind an eager or TorchScript backend.

        Raises:
            OptionError: The onnx backend has none.
        """
        module = getattr(self._ready(), "module", None)
        if module is None:
            raise OptionError(
                f"{self.name} is served by {self.backend}, which has no torch module; use backend='eager'."
            )
        return module

    @property
    def info(self) -> dict[str, Any]:
        """What is being served: names, device, weights, licence, preprocessing, and the artifact's manifest entry."""
        spec = self._request.spec
        session = self._ready()
        return {
            "model": self.name,
            "backend": self.backend,
            "precision": self._request.precision,
            "input": self._request.input,
            "device": session.device,
            "device_reason": session.reason,
            "providers": list(session.providers),
            "fallback": self._fallback,
            "measured": preference(self._request, self.backend, session.device.partition(":")[0]),
            "load": self._request.load,
            "reuse_outputs": self._request.reuse_outputs,
            "out_indices": None if self._request.canonical is None else list(self._request.canonical),
            "image_size": self._request.size,
            "options": dict(self._request.options),
            "weights": self._request.weights_key,
            "source": str(self._request.source) if self._request.source else None,
            "licence": spec.licence,
            "gated": spec.gated,
            "preprocessing": spec.preprocessing,
            "artifact": self._artifact.to_json() if self._artifact else None,
        }

    def close(self) -> None:
        """Release the session and its memory; a later call raises ClosedError."""
        with self._lock:
            self._closed = True
            self._session = None

    def __enter__(self) -> "Backbone":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A session cannot be pickled; what leads to the same one can. A worker opens it anew.
        return _restore, (self._request, self.backend, self._artifact, self._open_session, self._fallback)

    def __repr__(self) -> str:
        where = "closed" if self._closed else self.device
        return f"Backbone({self.name!r}, backend={self.backend!r}, device={where!r})"


_alive: "weakref.WeakSet[Backbone]" = weakref.WeakSet()


def _after_fork() -> None:
    """Make a forked worker open sessions of its own: thread pools do not survive a fork.

    The inherited sessions are never destroyed: that would wait forever for threads that do not exist here.
    """
    for backbone in _alive:
        backbone._forget_session()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _restore(*state: Any) -> Backbone:
    return Backbone(*state)


def _is_tensor(images: Any) -> bool:
    # Without importing torch: only a process that has it can hold a tensor.
    return isinstance(images, getattr(sys.modules.get("torch"), "Tensor", ()))


def _given(images: Any, session: Session, is_tensor: bool) -> Any:
    """Return images as `session` takes them; tensors on its own GPU stay there."""
    if session.native == "torch":
        return images if is_tensor else _tensor(np.ascontiguousarray(images))
    if not is_tensor:
        return np.ascontiguousarray(images)
    return images if images.device.type != "cpu" else images.detach().contiguous().numpy()


def _tensor(array: Any) -> Any:
    import torch

    if not array.flags.writeable:  # torch warns about such memory, and would let it be written
        array = array.copy()
    return torch.from_numpy(array)


def _like(output: Any, images: Any, is_tensor: bool) -> Any:
    if not is_tensor:
        return output.cpu().numpy() if _is_tensor(output) else output
    return (output if _is_tensor(output) else _tensor(output)).to(images.device)
