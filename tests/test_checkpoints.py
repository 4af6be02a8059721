"""Small checkpoints in each publisher's layout, through the real download and conversion: the right numbers."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_client import client
from loopback import COMMIT, Answer, Loopback, serving
from published import LAYOUTS, Layout, draw, embed, file_of, shapes
from torch import nn

from runtime import load_model, registry
from runtime.backbones import timm_vit
from runtime.errors import WeightsError
from runtime.facts import HubFile, Url

IDS = [layout.name.rpartition("/")[2] for layout in LAYOUTS]
SHRUNK = {"embed_dim": 48, "depth": 4, "num_heads": 3}
ON_HUB = [layout for layout in LAYOUTS if isinstance(registry.find(layout.name).source, HubFile)]


class StoppedError(Exception):
    """The skeleton is known; nothing needs to be filled."""


class Skeleton:
    """Stands for weights; keeps what the architecture wants."""

    def construct(self, create: Callable[[], nn.Module], adapt: Any = None) -> nn.Module:  # noqa: ARG002
        with torch.device("meta"):
            self.wants = {name: tuple(tensor.shape) for name, tensor in create().state_dict().items()}
        raise StoppedError


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_the_architecture_has_exactly_the_published_tensors(layout: Layout) -> None:
    skeleton = Skeleton()
    with pytest.raises(StoppedError):
        registry.find(layout.name).build(skeleton)

    published = shapes(layout)
    if layout.name.endswith("_1chan"):  # the colours are summed
        published["patch_embed.proj.weight"] = (layout.width, 1, layout.patch, layout.patch)
    assert len(published) == layout.count
    assert skeleton.wants == published


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback


@pytest.fixture(scope="module")
def warm(server: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with every published file in it, downloaded by the hub's own client."""
    home = tmp_path_factory.mktemp("hub")
    online = client(home, HF_ENDPOINT=server.url)
    fetch = next(online)
    for layout in ON_HUB:
        repo = registry.find(layout.name).source.repo
        server.forget()
        server.offer(repo, layout.filename, file_of(layout.reduced(), draw(layout.reduced())))
        missing = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
        if layout.filename != "model.safetensors":
            server.refuse(repo, "model.safetensors", 404, **missing)
        assert fetch(repo)[1] == COMMIT
    next(online, None)
    return home / "hub"


@pytest.fixture
def shrunk(
    server: Loopback, warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Layout, bytes], None]:
    """Every architecture has four narrow blocks; the returned function offers a file where a backbone looks for it."""
    create = timm_vit._create
    monkeypatch.setattr(timm_vit, "_create", lambda *given: create(*given[:-1], {**given[-1], **SHRUNK}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(warm))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    server.forget()

    def publish(layout: Layout, body: bytes) -> None:
        spec = registry.find(layout.name)
        if isinstance(spec.source, Url):
            assert spec.source.url.endswith(f"/{layout.filename}")
            server.answers[f"/{layout.name}/{layout.filename}"] = Answer(body)
            md5 = spec.source.md5 and hashlib.md5(body).hexdigest()
            url = Url(f"{server.url}/{layout.name}/{layout.filename}", md5=md5)
            registry._specs[layout.name] = dataclasses.replace(spec, source=url)

    return publish


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_a_published_checkpoint_gives_the_numbers_of_its_tensors(
    layout: Layout, shrunk: Callable[[Layout, bytes], None], server: Loopback
) -> None:
    layout = layout.reduced()
    tensors = draw(layout)
    body = file_of(layout, tensors)
    shrunk(layout, body)

    model = load_model(layout.name, weights="pretrained", backend="eager", device="cpu")

    channels = 1 if layout.name.endswith("_1chan") else 3
    images = np.random.default_rng(0).standard_normal((2, channels, 224, 224), dtype=np.float32)
    expected = embed(layout, tensors, torch.from_numpy(images)).numpy()
    found = model(images)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-6
    assert all(request.startswith("GET /pathology/") for request in server.requests)  # the hub's files are cached


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "norm.bias"}, "1 missing (norm.bias)"),
        (lambda t: t | {"decoder.weight": torch.ones(1)}, "1 unexpected (decoder.weight)"),
        (
            lambda t: t | {"cls_token": torch.ones(1, 1, 7)},
            "1 of another shape (cls_token (1, 1, 7) instead of (1, 1, 48))",
        ),
        (
            lambda t: t | {"patch_embed.proj.weight": torch.ones(48, 3, 8, 8)},
            "1 of another shape (patch_embed.proj.weight (48, 3, 8, 8) instead of (48, 3, 16, 16))",
        ),
        (lambda t: {"student": t, "epoch": 7}, "2 unexpected (epoch, student)"),
        (lambda t: {"state_dict": {f"encoder.{k}": v for k, v in t.items()}}, " missing (blocks.0.attn.proj.bias, "),
        (lambda t: {}, " missing (blocks.0.attn.proj.bias, "),
    ],
    ids=["missing", "unexpected", "shape", "patch", "wrapped", "prefixed", "empty"],
)
def test_the_checkpoint_of_another_architecture_is_listed_and_never_loaded(
    change: Callable[[dict[str, Any]], dict[str, Any]], problem: str, shrunk: Callable[[Layout, bytes], None]
) -> None:
    layout = LAYOUTS[0].reduced()
    shrunk(layout, file_of(layout, change(draw(layout))))

    with pytest.raises(WeightsError) as caught:
        load_model(layout.name, weights="pretrained", backend="eager", device="cpu")

    assert "does not fit the architecture: " in str(caught.value)
    assert problem in str(caught.value)
    assert "Nothing was loaded. Is it the checkpoint of another model or release?" in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_no_converter_trips_over_a_foreign_file(
    layout: Layout, shrunk: Callable[[Layout, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.weights.read_checkpoint", lambda path: {"encoder.weight": torch.ones(2), "epoch": 3})
    shrunk(layout, b"whatever")

    with pytest.raises(WeightsError, match="Nothing was loaded") as caught:
        load_model(layout.name, weights="pretrained", backend="eager", device="cpu")

    assert "encoder.weight" in str(caught.value)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_downloaded_checkpoint_is_never_run(shrunk: Callable[[Layout, bytes], None], tmp_path: Path) -> None:
    layout = LAYOUTS[0].reduced()
    proof = tmp_path / "executed"
    shrunk(layout, file_of(layout, draw(layout) | {"bomb": Bomb(proof)}))

    with pytest.raises(WeightsError, match="Only tensors are loaded, never code") as caught:
        load_model(layout.name, weights="pretrained", backend="eager", device="cpu")

    assert f"(pickle with GLOBAL {os.mkdir.__module__}.mkdir)" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice is to run the code
    assert not proof.exists()
