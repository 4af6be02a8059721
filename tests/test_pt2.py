"""backend="pt2": packages compiled by AOTInductor, on weights that they share with the other formats."""

import json
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_architectures as small
import torch
from conftest import request_for
from torch import nn

from exporters import pipeline, pool, to_pt2
from exporters.plan import Job
from exporters.pool import WeightPool
from runtime import Backbone, load_model
from runtime.artifacts import Store
from runtime.backends import pt2
from runtime.backends.pt2_package import NEEDS, Machine, obstacle
from runtime.errors import ArtifactCorruptError, BuildError, DeviceError
from runtime.manifest import Artifact, Form, Manifest

NAME = "test/tiny_vit"
FORMS = (Form("onnx"), Form("pt2"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding of test/tiny_vit at any height and width, as ONNX and pt2."""
    root = tmp_path_factory.mktemp("compiled")
    request = request_for(NAME, weights="random", artifacts=str(root), image_size="dynamic")
    outcomes = pipeline.build(Job(request, FORMS))
    assert [o.status for o in outcomes] == ["built", "built"], outcomes
    return root


def serve(root: Path, backend: str = "pt2", **options: Any) -> Backbone:
    given = {"weights": "random", "artifacts": root, "on_fallback": "error", "device": "cpu"}
    return load_model(NAME, backend=backend, image_size="dynamic", **(given | options))


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, height, width), dtype=np.float32)


def artifact(root: Path) -> Artifact:
    return next(a for a in Store(root).read(NAME).artifacts if a.key.format == "pt2")


def package(root: Path) -> Path:
    return Store(root).folder(NAME) / artifact(root).graph.name


def distance(got: Any, expected: Any) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def compile_to(folder: Path, module: nn.Module, precision: str = "fp32") -> pt2.Pt2Session:
    """Return a session for a module compiled by itself."""
    program = to_pt2.export(module, small.images(2), device="cpu", precision=precision, patch_size=None)
    to_pt2.write(program, WeightPool(folder, Manifest(NAME), folder), folder / "module.pt2")
    return pt2.load(folder / "module.pt2", request_for(NAME, backend="pt2", device="cpu"))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 48), (40, 64, 16)])
def test_the_embedding_is_the_eager_one_at_any_batch_and_size(root: Path, shape: tuple[int, int, int]) -> None:
    model = serve(root)

    assert distance(model(images(*shape)), serve(root, "eager")(images(*shape))) < 1e-5
    assert (model.backend, model.device, model.providers) == ("pt2", "cpu", ())


def test_images_may_lie_in_memory_in_any_order(root: Path) -> None:
    model = serve(root)
    turned = torch.from_numpy(images(3, 32, 48)).contiguous(memory_format=torch.channels_last)

    np.testing.assert_array_equal(model(turned).numpy(), model(images(3, 32, 48)))


def test_its_weights_are_those_of_the_onnx_artifact(root: Path) -> None:
    sizes = {a.key.format: {f.name: f.bytes for f in a.files[1:]} for a in Store(root).read(NAME).artifacts}
    own = sum(bytes for name, bytes in sizes["pt2"].items() if name not in sizes["onnx"])

    assert own < 0.2 * sum(sizes["onnx"].values())
    assert artifact(root).graph.bytes < 1_000_000


def test_a_package_tells_nothing_of_the_machine_that_compiled_it(root: Path) -> None:
    with zipfile.ZipFile(package(root)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}

    assert any(name.endswith(".so") for name in contents)
    assert not any(name.endswith(".cpp") for name in contents)
    for place in (root, Path(torch.__file__).parent, Path.home(), Path(__file__).parent):
        assert not [name for name, data in contents.items() if str(place).encode() in data]


def test_what_was_compiled_again_is_identical(root: Path, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.GELU(), nn.Flatten(2)).eval()
    packages = []
    for _ in range(2):
        folder = tmp_path / "same"
        folder.mkdir()
        compile_to(folder, module)
        packages.append((folder / "module.pt2").read_bytes())
        shutil.rmtree(folder)

    assert packages[0] == packages[1]


@pytest.mark.parametrize("name", ["LayerScale, registers and SwiGLU", "Swin", "ConvNet", "ConvNet with batch norms"])
def test_architectures_keep_their_numbers(name: str, tmp_path: Path) -> None:
    module = small.make(name)
    session = compile_to(tmp_path, module)

    for count in (1, 5):
        with torch.no_grad():
            expected = module(small.images(count))
        assert distance(session.run(small.images(count))[0].numpy(), expected.numpy()) < 1e-5


def test_bf16_is_computed_in_bf16_and_returned_in_float32(tmp_path: Path) -> None:
    module = small.make("plain ViT")
    session = compile_to(tmp_path, module, "bf16")

    [got] = session.run(small.images(8))

    with torch.no_grad():
        expected = module(small.images(8))
    assert got.dtype == torch.float32
    assert torch.cosine_similarity(got, expected).min() > 0.9995
    assert distance(got.numpy(), expected.numpy()) > 1e-4, "that is float32"
    assert {p.dtype for p in module.parameters()} == {torch.float32}, "the module was changed"
    stored = sum(piece.length for piece in pool._slices(tmp_path / "module.pt2"))
    assert stored == 2 * sum(p.numel() for p in module.parameters()), "a later build would read other bytes"


def test_threads_that_share_a_backbone_get_their_own_numbers(root: Path) -> None:
    model = serve(root)
    batches = [images(1 + seed % 3, seed=seed) for seed in range(24)]
    alone = [model(batch) for batch in batches]

    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(model, batches))

    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


HERE = Machine("cpu", "Linux x86_64", "AVX512", "", "2.15.0")


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (HERE, None),
        (replace(HERE, instructions="AVX2", torch="2.14.0"), None),
        (replace(HERE, instructions="SVE256"), "it needs a CPU with SVE256, this one has AVX512"),
        (replace(HERE, system="Linux aarch64"), "it was compiled for Linux aarch64, this is Linux x86_64"),
        (replace(HERE, device="cuda", gpu="9.0"), "it was compiled for cuda, this is cpu"),
    ],
)
def test_code_runs_where_its_instructions_are(needed: Machine, words: str | None) -> None:
    assert obstacle(needed, HERE) == words


def test_a_cpu_that_lacks_the_instructions_is_told_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")

    with pytest.raises(
        DeviceError, match=r"cannot run here: it needs a CPU with AVX2, this one has DEFAULT\. Build it"
    ):
        serve(root)


def test_no_package_needs_more_than_its_builder_was_told_to_use(root: Path) -> None:
    with zipfile.ZipFile(package(root)) as archive:
        needs = json.loads(archive.read(f"archive/extra/{NEEDS}"))

    if "x86_64" in needs["system"]:
        assert needs["instructions"] == "AVX2"
    assert needs["torch"] == torch.__version__


def damaged(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package(root).parent, tmp_path / "copied") / package(root).name


def test_a_cut_package_is_corrupt(root: Path, tmp_path: Path) -> None:
    path = damaged(root, tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(ArtifactCorruptError, match=f"torch cannot load {path}: File is not a zip file"):
        pt2.load(path, request_for(NAME, backend="pt2"))


def test_cut_weights_are_corrupt(root: Path, tmp_path: Path) -> None:
    path = damaged(root, tmp_path)
    for data in path.parent.glob("*.data"):
        data.write_bytes(data.read_bytes()[:1000])

    with pytest.raises(ArtifactCorruptError, match=f"torch cannot load {path}: "):
        pt2.load(path, request_for(NAME, backend="pt2"))


def test_what_another_torch_compiled_is_said_so_when_it_does_not_load(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/extra/{NEEDS}", json.dumps({**vars(pt2.machine("cpu")), "torch": "2.9.0"}))

    with pytest.raises(ArtifactCorruptError, match=re.escape(f"torch 2.9.0, this is {torch.__version__}.")):
        pt2.load(path, request_for(NAME, backend="pt2", device="cpu"))


def test_a_build_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BuildError, match=r"no compiler 'g\+\+' here\. Install one .* Serving needs none\."):
        to_pt2.find_compiler()


def test_serving_needs_no_compiler(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert np.isfinite(serve(root)(images(2))).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_package_for_a_gpu_is_built_where_there_is_one() -> None:
    with pytest.raises(BuildError, match="pt2 for cuda is compiled on the GPU, and torch sees none here"):
        to_pt2.export(nn.Identity(), small.images(2), device="cuda", precision="fp32", patch_size=None)


def test_a_torch_that_compiles_for_the_cpu_at_hand_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cu130")

    with pytest.raises(BuildError, match=r"takes torch 2\.13 or newer; this is torch 2\.12\.1\+cu130\. Run: pip inst"):
        to_pt2.export(torch.nn.Identity(), torch.zeros(2, 3, 8, 8), device="cpu", precision="fp32", patch_size=None)


def test_a_vendors_build_of_the_oldest_torch_is_a_pre_release_and_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0a0+vendor")

    to_pt2.export(torch.nn.Identity(), torch.zeros(2, 3, 8, 8), device="cpu", precision="fp32", patch_size=None)
