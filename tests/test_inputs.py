"""What a loaded backbone takes, refuses and tells of itself, and who may share it: threads and worker processes."""

import json
import multiprocessing
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Backbone, load_model, register_model
from runtime.errors import ClosedError, InputError, OptionError
from runtime.facts import HALF, Preprocessing, Url

BACKENDS = ["eager", "onnx", "openvino", "torchscript"]


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def load(backend: str, built: Path, **options: Any) -> Backbone:
    return load_model(
        "test/tiny_vit", backend=backend, weights="random", artifacts=built, on_fallback="error", **options
    )


@pytest.fixture(scope="module")
def models(built: Path) -> dict[str, Backbone]:
    """The embedding on each backend: nothing that a test does with it may leave a trace."""
    return {backend: load(backend, built) for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, models: dict[str, Backbone]) -> Backbone:
    return models[request.param]


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: None, "takes a numpy array or torch tensor, not NoneType."),
    (
        lambda: "tile.png",
        "takes a numpy array or torch tensor, not str. For pictures: model(model.preprocess(",
    ),
    (lambda: [images()], "takes a numpy array or torch tensor, not list."),
    (lambda: images().astype(np.float64), "got float64 [2, 3, 32, 32]: convert it to float32."),
    (lambda: images().astype(np.float16), "got float16 [2, 3, 32, 32]: convert it to float32."),
    (lambda: images().astype(">f4"), "got >f4 [2, 3, 32, 32]: its bytes are in another machine's order; images.astype"),
    (lambda: images().astype(">f8"), "got >f8 [2, 3, 32, 32]: convert it to float32."),
    (lambda: np.zeros((2, 3, 32, 32), np.int64), "got int64 [2, 3, 32, 32]: convert it to float32."),
    (lambda: np.zeros((2, 32, 32, 3), np.uint8), "got uint8 [2, 32, 32, 3]: pictures go through model.preprocess"),
    (
        lambda: images()[0],
        "got float32 [3, 32, 32]: a batch has four dimensions; images[None] makes one",
    ),
    (lambda: images()[None], "got float32 [1, 2, 3, 32, 32]: a batch has four dimensions"),
    (lambda: np.zeros((), np.float32), "got float32 []: a batch has four dimensions"),
    (lambda: images(0), "got float32 [0, 3, 32, 32]: the batch is empty."),
    (lambda: images()[:, :1], "got float32 [2, 1, 32, 32]: the second dimension is the channels, 3."),
    (lambda: images().transpose(0, 2, 3, 1), "got float32 [2, 32, 32, 3]: the second dimension is the channels, 3."),
    (lambda: images()[:, :, :, :24], "got float32 [2, 3, 32, 24]: load it with image_size="),
    (lambda: np.zeros((1, 3, 64, 64), np.float32), "got float32 [1, 3, 64, 64]: load it with image_size=64 or"),
]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("to_sparse", r"got a tensor of layout sparse_coo. Give it a dense batch, such as images.to_dense\(\)"),
        ("to_mkldnn", r"got a tensor of layout _mkldnn. Give it a dense batch, such as images.to_dense\(\)"),
        ("to_meta", "got a tensor on the meta device, which has a shape and no values."),
    ],
)
def test_a_tensor_whose_values_are_not_there_is_refused_in_words(change: str, said: str, model: Backbone) -> None:
    import torch

    given = torch.from_numpy(images())
    wrong = given.to("meta") if change == "to_meta" else getattr(given, change)()

    with pytest.raises(InputError, match=said):
        model(wrong)


@pytest.mark.parametrize(("make", "said"), WRONG, ids=[said[:60] for _, said in WRONG])
def test_wrong_input_is_refused_in_words_on_every_backend(make: Callable[[], Any], said: str, model: Backbone) -> None:
    import torch

    given = [make()]
    if isinstance(given[0], np.ndarray) and given[0].dtype.isnative:
        given.append(torch.from_numpy(given[0]))
    for wrong in given:
        with pytest.raises(InputError) as error:
            model(wrong)
        assert str(error.value).startswith("test/tiny_vit takes ")
        assert said in str(error.value)
        if isinstance(wrong, np.ndarray):
            assert "takes float32 [B, 3, H, W] with H, W = 32, 32; got" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 3, 36, 32), (1, 3, 32, 4), (1, 3, 0, 32)])
def test_a_dynamic_backbone_refuses_sides_that_are_no_multiple_of_the_patch(shape: tuple[int, ...]) -> None:
    model = load_model("test/tiny_vit", backend="eager", weights="random", image_size="dynamic")

    with pytest.raises(InputError, match=r"with H, W = multiples of 8; .*: both sides must be multiples of the patch"):
        model(np.zeros(shape, np.float32))
    assert model(np.zeros((1, 3, 16, 40), np.float32)).shape == (1, 48)


def without_write_access(array: np.ndarray) -> np.ndarray:
    copied = array.copy()
    copied.flags.writeable = False
    return copied


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "read-only": without_write_access,
    "a view of every second": lambda array: np.repeat(array, 2, axis=3)[:, :, :, ::2],
    "channels last": lambda array: array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "reversed": lambda array: array[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "column-major": np.asfortranarray,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(layout: str, model: Backbone) -> None:
    import torch

    given = LAYOUTS[layout](images())
    expected = model(images())

    outputs = [model(given)]
    if given.flags.writeable and min(given.strides) > 0:
        outputs.append(model(torch.from_numpy(given)).numpy())

    for output in outputs:
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(given, images())


def test_subclasses_of_tensor_and_parameters_are_tensors(model: Backbone) -> None:
    import torch

    class Annotated(torch.Tensor):
        """As MONAI's MetaTensor or torchvision's Image."""

    expected = model(torch.from_numpy(images()))

    for given in (
        torch.from_numpy(images()).as_subclass(Annotated),
        torch.nn.Parameter(torch.from_numpy(images())),
        torch.from_numpy(images()).requires_grad_(),
    ):
        output = model(given)
        assert isinstance(output, torch.Tensor)
        assert not output.requires_grad
        assert torch.equal(output.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_backbone_says_so_and_its_context_closes_it(backend: str, built: Path) -> None:
    with load(backend, built) as model:
        assert model(images()).shape == (2, 48)
        assert repr(model) == f"Backbone('test/tiny_vit', backend='{backend}', device='{model.device}')"

    assert repr(model) == f"Backbone('test/tiny_vit', backend='{backend}', device='closed')"
    for use in (lambda: model(images()), lambda: model.device, lambda: model.providers, lambda: model.info):
        with pytest.raises(ClosedError, match=r"was closed. Load it again with load_model\('test/tiny_vit'\)"):
            use()
    model.close()


def test_info_tells_what_serves(models: dict[str, Backbone]) -> None:
    for backend, model in models.items():
        info = model.info
        assert (info["model"], info["backend"], info["weights"]) == ("test/tiny_vit", backend, "random:0")
        assert (info["licence"], info["gated"], info["out_indices"]) == ("Apache-2.0", False, None)
        assert (info["device"], info["providers"]) == (model.device, list(model.providers))
        assert info["preprocessing"] == Preprocessing(size=32, mean=HALF, std=HALF)
        assert info["source"] == "http://127.0.0.1:9/tiny.pth"
        assert (info["artifact"] is None) == (backend == "eager")
        assert info["fallback"] is None
        assert info["device_reason"]
    key = models["onnx"].info["artifact"]["key"]
    assert (key["format"], key["weights"], key["image_size"]) == ("onnx", "random:0", [32, 32])
    json.dumps(models["onnx"].info["artifact"])
    assert models["onnx"].providers[-1] == "CPUExecutionProvider"


def test_only_torch_backends_have_a_module(models: dict[str, Backbone]) -> None:
    import torch

    for backend in ("eager", "torchscript"):
        assert isinstance(models[backend].module, torch.nn.Module)
        assert not models[backend].module.training
    with pytest.raises(OptionError, match="served by onnx, which has no torch module; use backend='eager'"):
        models["onnx"].module  # noqa: B018


def test_threads_get_the_numbers_that_one_thread_gets(model: Backbone) -> None:
    batches = [images()[:1] * scale for scale in range(1, 17)]
    expected = [model(batch) for batch in batches]

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(model, batches * 3))

    for index, output in enumerate(got):
        np.testing.assert_allclose(output, expected[index % 16], rtol=0, atol=1e-5)


@register_model(
    "test/served", preprocessing=Preprocessing(size=32), source=Url("http://127.0.0.1:9/"), depth=3, patch_size=8
)
def served(weights: Any, out_indices: Any = None, image_size: Any = 32) -> Any:
    """Known to workers without torch: its artifact is the one of test/tiny_vit."""
    raise AssertionError("an artifact is served, nothing is built")


@pytest.fixture(scope="module")
def torchless(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    root = tmp_path_factory.mktemp("served")
    folder = shutil.copytree(built / "test/tiny_vit", root / "test/served")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"model": "test/served"}))
    return load_model("test/served", backend="onnx", weights="random", artifacts=root, on_fallback="error")


def work(model: Backbone, batch: np.ndarray, results: Any) -> None:
    """What a worker process does."""
    results.put((model(batch), "torch" in sys.modules))


def in_a_worker(method: str, model: Backbone) -> tuple[np.ndarray, bool]:
    """Return the numbers of `model` in a process started by `method`, and whether torch was loaded there."""
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    worker = context.Process(target=work, args=(model, images(), results))
    with warnings.catch_warnings():
        # Python 3.12 and newer tell of what this test is about: the forked process has threads.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        worker.start()
    worker.join(60)
    hung = worker.is_alive()
    worker.kill()
    assert not hung
    assert worker.exitcode == 0
    return results.get()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_worker_process_serves_an_artifact_with_the_same_numbers(method: str, torchless: Backbone) -> None:
    expected = torchless(images())

    numbers, has_torch = in_a_worker(method, torchless)

    np.testing.assert_array_equal(numbers, expected)
    if method == "spawn":  # a fork has what its parent has, a fork server what was ever preloaded into it
        assert not has_torch
    np.testing.assert_array_equal(torchless(images()), expected)


def test_a_forked_worker_gets_the_same_numbers_from_every_backend(model: Backbone) -> None:
    model(images(64))  # enough for torch to start its threads
    numbers, _ = in_a_worker("fork", model)

    np.testing.assert_allclose(numbers, model(images()), rtol=0, atol=1e-5)
