"""runtime.ray_serve: pictures over HTTP, in batches, from a real Ray Serve instance on this machine."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import load_model
from runtime.errors import ArtifactNotFoundError, DependencyError, InputError, OptionError, UnknownModelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own use of pydantic
    from runtime.ray_serve import NPY, Embedder, Options, app, parse, read_images

NAME = "test/tiny_vit"
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where Ray Serve listens, on a Ray cluster of its own."""
    import ray
    from ray import serve

    folder, port = tempfile.mkdtemp(prefix="ray"), free_port()  # names of sockets are short: no folder of pytest's
    options = {"address": "local", "num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    ray.init(**options, _temp_dir=folder, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}/"
        serve.shutdown()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def url(address: str, built: Path) -> str:
    """The application, as `serve run` starts it."""
    import ray

    command = [BIN / "serve", "run", "--non-blocking", "--address", ray.get_runtime_context().gcs_address]
    arguments = [f"model={NAME}", "backend=onnx", "weights=random", f"artifacts={built}", "imports=tiny_backbones"]
    sizes = ["batch_size=8", "batch_wait_ms=200", "num_replicas=1", "threads=1"]
    ran = subprocess.run(
        [*command, "runtime.ray_serve:app", *arguments, *sizes],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    return address


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return status and body of an answer."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def picture(seed: int = 0, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def model(built: Path) -> Any:
    return load_model(NAME, backend="onnx", weights="random", artifacts=built, device="cpu")


@pytest.mark.heavy
def test_a_picture_comes_back_as_its_embedding_in_json(url: str, model: Any) -> None:
    status, body = ask(url, png(picture()))

    answer = json.loads(body)
    assert (status, answer["model"]) == (200, NAME)
    np.testing.assert_allclose(answer["embedding"], model(model.preprocess(picture())), rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
def test_arrays_come_back_as_an_npy_file_in_their_order(url: str, model: Any) -> None:
    arrays = np.stack([picture(seed) for seed in range(20)])  # more than a batch

    status, body = ask(url, npy(arrays), Accept=NPY)

    rows = np.load(io.BytesIO(body))
    assert (status, rows.dtype, rows.shape) == (200, np.float32, (20, 48))
    np.testing.assert_allclose(rows, model(model.preprocess(arrays)), rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
def test_pictures_that_come_at_once_are_answered_to_whom_they_belong(url: str, model: Any) -> None:
    seeds = range(16)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: ask(url, png(picture(seed)), Accept=NPY)[1], seeds))

    expected = model(model.preprocess([picture(seed) for seed in seeds]))
    got = np.concatenate([np.load(io.BytesIO(answer)) for answer in answers])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class CountedModel:
    """A model that keeps the sizes of its batches."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, images: np.ndarray) -> Any:
        self.sizes.append(len(images))
        return self.model(images)


class CountedEmbedder(Embedder):
    """A replica that tells the sizes of its batches."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._model = CountedModel(self._model)

    def _about(self) -> dict[str, Any]:
        return {"sizes": self._model.sizes}


@pytest.mark.heavy
def test_images_that_come_at_once_run_in_batches_of_the_size_asked_for(address: str, built: Path) -> None:
    from ray import serve

    store = {"weights": "random", "artifacts": str(built), "imports": "tiny_backbones"}
    options = Options(NAME, "onnx", batch_size=8, batch_wait_ms=500, **store)
    serve.run(serve.deployment(CountedEmbedder).bind(options), name="counted", route_prefix="/counted")

    status, _ = ask(f"{address}counted", npy(np.stack([picture(seed) for seed in range(20)])))

    assert status == 200
    assert json.loads(ask(f"{address}counted")[1])["sizes"] == [8, 8, 4]


@pytest.mark.heavy
def test_get_tells_what_is_being_served(url: str) -> None:
    status, body = ask(url)

    told = json.loads(body)
    assert status == 200
    assert (told["model"], told["backend"], told["device"], told["weights"]) == (NAME, "onnx", "cpu", "random:0")
    assert told["licence"] == "Apache-2.0"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The request is empty"),
        (b"not a picture", "are not a picture that can be read"),
        (npy(np.zeros((4, 4, 3), np.float32)), "takes Pillow images or uint8 arrays"),
    ],
    ids=["empty", "text", "float32"],
)
def test_what_is_no_picture_is_the_callers_mistake(body: bytes, words: str, url: str) -> None:
    status, answer = ask(url, body)

    assert status == 400
    assert words in json.loads(answer)["error"]


@pytest.mark.heavy
def test_a_replica_goes_on_after_a_bad_request(url: str) -> None:
    assert ask(url, png(picture())[:100])[0] == 400
    assert ask(url, png(picture()))[0] == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The request is empty"),
        (b"\x93NUMPY and no more", "are not an .npy file"),
        (npy(np.array([{"a": 1}], dtype=object)), "are not an .npy file"),
        (png(picture())[:200], "are not a picture that can be read"),
    ],
    ids=["empty", "npy", "pickle", "truncated"],
)
def test_bytes_that_are_no_picture_are_an_input_error(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_images(body)


def test_files_and_arrays_are_read_as_they_are() -> None:
    np.testing.assert_array_equal(read_images(png(picture())), picture())
    np.testing.assert_array_equal(read_images(npy(picture()[None])), picture()[None])


def test_arguments_come_as_text_or_as_values() -> None:
    written = parse({"model": NAME, "batch_size": "8", "batch_wait_ms": "1.5", "weights": "random", "threads": "2"})

    assert written == parse({"model": NAME, "batch_size": 8, "batch_wait_ms": 1.5, "weights": "random", "threads": 2})
    assert written.load == {
        "backend": "auto",
        "precision": "fp32",
        "weights": "random",
        "seed": 0,
        "threads": 2,
        "on_fallback": "error",
    }


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, OptionError, "model: Field required"),
        ({"model": NAME, "batchsize": 8}, OptionError, "got unknown batchsize. Valid are model, backend"),
        ({"model": NAME, "batch_size": "many"}, OptionError, "batch_size: Input should be a valid integer"),
        ({"model": NAME, "batch_size": 0}, OptionError, "batch_size=0 must be at least 1"),
        ({"model": NAME, "batch_wait_ms": -1}, OptionError, "batch_wait_ms=-1.0 must be at least 0"),
        ({"model": NAME, "precision": "fp8"}, OptionError, "precision='fp8' is none of"),
        ({"model": "test/tiny_vot"}, UnknownModelError, "Nearest: test/tiny_vit"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_starts(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        parse(arguments)


def test_a_replica_reserves_what_it_computes_on() -> None:
    def reserved(**arguments: Any) -> dict[str, Any]:
        bound = app({"model": NAME, "weights": "random", **arguments})
        return bound._bound_deployment.ray_actor_options

    assert {"num_cpus": 4, "num_gpus": 0}.items() <= reserved(threads="4").items()
    assert {"num_cpus": 1, "num_gpus": 1}.items() <= reserved(device="cuda").items()


def test_a_replica_without_its_artifact_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"python -m exporters\.build test/tiny_vit"):
        Embedder(Options(NAME, "onnx", weights="random", artifacts=str(tmp_path)))


def test_more_requests_may_wait_than_fit_a_batch() -> None:
    bound = app({"model": NAME, "weights": "random", "batch_size": 64, "num_replicas": 3})

    assert bound._bound_deployment.max_ongoing_requests == 128
    assert bound._bound_deployment.num_replicas == 3


def test_without_ray_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["ray"] = None
try:
    import runtime.ray_serve
except Exception as error:
    print(type(error).__name__, error)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ran.stdout.startswith(DependencyError.__name__), ran.stderr
    assert "pip install 'backbone-runtime[serve]'" in ran.stdout


def test_a_server_never_falls_back_to_something_slower() -> None:
    assert Options(NAME).load["on_fallback"] == "error"
