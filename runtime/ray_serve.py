"""A Ray Serve application for small deployments: pictures in, embeddings out, in batches of what came meanwhile.

::

    serve run runtime.ray_serve:app model=pathology/kaiko_vits16 backend=onnx threads=4

POST a picture (JPEG, PNG, TIFF, WebP, BMP), or an .npy file with one uint8 array [H, W, 3] or several
[B, H, W, 3]; the answer is `{"model": ..., "embedding": [[...], ...]}`, or an .npy file, float32 [B, D], for those who
accept `application/x-npy`. GET tells what is being served. Only this file needs Ray; nothing else imports it.
"""

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import registry
from runtime.arguments import import_modules
from runtime.embedding.decode import decode
from runtime.embedding.tile import Tile
from runtime.errors import DependencyError, InputError, OptionError
from runtime.load import load_model
from runtime.request import make_request

try:
    from pydantic import TypeAdapter, ValidationError
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
except ImportError as error:
    raise DependencyError(
        f"runtime.ray_serve needs Ray Serve, and {error.name} is not installed: pip install 'backbone-runtime[serve]'"
    ) from error

NPY = "application/x-npy"
# The first bytes of every .npy file.
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Options:
    """What `serve run runtime.ray_serve:app NAME=VALUE ...` may say.

    Attributes:
        model: Registry name.
        backend, precision, device, artifacts, weights, seed: As for `load_model`. With a device of `cuda`, each replica
            reserves a GPU of the cluster; without, it sees none.
        batch_size: Images in the largest batch.
        batch_wait_ms: How long an image may wait for others, in milliseconds.
        num_replicas: Copies of the model, each in a process of its own.
        threads: CPUs that a replica reserves and computes on.
        imports: Modules that register further backbones, separated by commas.
    """

    model: str
    backend: str = "auto"
    precision: str = "fp32"
    device: str | None = None
    artifacts: str | None = None
    weights: str = "pretrained"
    seed: int = 0
    batch_size: int = 32
    batch_wait_ms: float = 5.0
    num_replicas: int = 1
    threads: int = 1
    imports: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_replicas", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.batch_wait_ms >= 0:
            raise OptionError(f"batch_wait_ms={self.batch_wait_ms} must be at least 0, in milliseconds.")

    @property
    def load(self) -> dict[str, Any]:
        """The keywords of `load_model`; a server must not become a slow one unnoticed, so nothing falls back."""
        names = ("backend", "precision", "device", "artifacts", "weights", "seed", "threads")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None} | {"on_fallback": "error"}


def parse(arguments: Mapping[str, Any]) -> Options:
    """Return the options that a user wrote, numbers as text included.

    Raises:
        OptionError: An unknown name, a missing model, or a value of another type or out of range.
        UnknownModelError: The model is not registered.
    """
    names = [field.name for field in fields(Options)]
    if unknown := sorted(set(arguments) - set(names)):
        raise OptionError(f"runtime.ray_serve:app got unknown {', '.join(unknown)}. Valid are {', '.join(names)}.")
    try:
        options = TypeAdapter(Options).validate_python(dict(arguments))
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise OptionError(f"runtime.ray_serve:app cannot use {dict(arguments)}: {told}.") from error
    _register(options)
    make_request(registry.find(options.model), None, options.load)  # raises before any replica starts
    return options


def _register(options: Options) -> None:
    import_modules([module for module in options.imports.split(",") if module])


def app(arguments: dict[str, Any]) -> serve.Application:
    """Return the application that `serve run` starts; see `Options` for its arguments.

    Raises:
        OptionError, UnknownModelError: See `parse`.
    """
    options = parse(arguments)
    gpus = 1 if (options.device or "").startswith("cuda") else 0
    deployment = serve.deployment(
        num_replicas=options.num_replicas,
        # One batch that runs and one that fills: of Ray's default, 5 requests, no larger batch would ever be made.
        max_ongoing_requests=2 * options.batch_size,
        ray_actor_options={"num_cpus": options.threads, "num_gpus": gpus},
    )
    return deployment(Embedder).bind(options)


class Embedder:
    """One replica: a backbone, and the queue before it."""

    def __init__(self, options: Options) -> None:
        _register(options)
        self._model = load_model(options.model, **options.load)
        queue: Any = self._embed  # what serve.batch adds to it is not in its type
        queue.set_max_batch_size(options.batch_size)
        queue.set_batch_wait_timeout_s(options.batch_wait_ms / 1000)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        if request.method == "GET":
            return JSONResponse(self._about())
        if request.method != "POST":
            return JSONResponse({"error": "POST pictures, or GET what is served."}, 405, {"Allow": "GET, POST"})
        try:
            images = await asyncio.to_thread(self._prepare, await request.body())
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400)
        rows = np.stack(await asyncio.gather(*map(self._embed, images)))
        if NPY in request.headers.get("accept", ""):
            return Response(_to_npy(rows), media_type=NPY)
        return JSONResponse({"model": self._model.name, "embedding": rows.tolist()})

    @serve.batch
    async def _embed(self, images: list[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the embeddings of images that came one by one."""
        return list(await asyncio.to_thread(self._model, np.stack(images)))

    def _prepare(self, body: bytes) -> NDArray[Any]:
        return self._model.preprocess(read_images(body))

    def _about(self) -> dict[str, Any]:
        info = self._model.info
        told = ("model", "backend", "precision", "device", "weights", "source", "licence", "gated")
        return {name: info[name] for name in told}


def read_images(body: bytes) -> Any:
    """Return the pixels that a request carries, uint8: of a picture [H, W, 3], as `runtime.embed` would decode it.

    Raises:
        InputError: It is neither.
    """
    if not body:
        raise InputError("The request is empty: POST a picture's file, or an .npy file of uint8 arrays [H, W, 3].")
    try:
        if body.startswith(_NPY_MAGIC):
            return np.load(io.BytesIO(body), allow_pickle=False)
        return decode(Tile("request", body))
    except (OSError, ValueError, EOFError) as error:  # ours are ValueErrors, too
        what = "an .npy file" if body.startswith(_NPY_MAGIC) else "a picture that can be read"
        raise InputError(f"The {len(body)} bytes of the request are not {what}: {error}.") from error


def _to_npy(rows: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()
