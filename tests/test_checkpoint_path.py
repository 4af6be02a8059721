"""checkpoint_path: a local file in the publisher's own layout serves any built-in, without network or token."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import TINY, run_command
from conftest import request_for
from safetensors.torch import save_file

from runtime import eager, load_model
from runtime.artifacts import open_store, sha256_of
from runtime.errors import ArtifactNotFoundError, OptionError, WeightsError

NAME = "test/tiny_vit"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "mine.safetensors"
    module = eager.build(request_for(NAME, weights="random", seed=5)).module
    save_file(module.model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    ran = run_command(NAME, *TINY, "--out-indices=none", "--checkpoint-path", checkpoint, "--artifacts", root)
    assert ran.status == 0, ran
    assert f"weights='checkpoint:{sha256_of(checkpoint)[:12]}'" in ran.out
    return root


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "eager"])
def test_every_backend_serves_the_files_weights(checkpoint: Path, store: Path, backend: str) -> None:
    expected = load_model(NAME, backend="eager", weights="random", seed=5)(images())
    model = load_model(NAME, backend=backend, checkpoint_path=checkpoint, artifacts=store, on_fallback="error")
    np.testing.assert_allclose(model(images()), expected, atol=1e-5)
    assert model.info["source"] == "file:mine.safetensors"


def test_an_artifact_is_served_where_the_file_is_not(checkpoint: Path, store: Path) -> None:
    known = f"checkpoint:{sha256_of(checkpoint)[:12]}"
    model = load_model(NAME, weights=known, backend="onnx", artifacts=store, on_fallback="error")
    assert model.info["weights"] == known


def test_it_is_never_served_to_who_asked_for_other_weights(store: Path) -> None:
    for given in ({}, {"weights": "random", "seed": 5}, {"weights": "checkpoint:0123456789ab"}):
        with pytest.raises(ArtifactNotFoundError, match="Built: embedding, onnx for cpu, fp32, 32x32, checkpoint:"):
            load_model(NAME, backend="onnx", artifacts=store, on_fallback="error", **given)


def test_the_manifest_names_the_file_and_its_digest_but_no_folder(checkpoint: Path, store: Path) -> None:
    entry = open_store(store).read(NAME).artifacts[0].to_json()
    assert entry["source"]["id"] == "file:mine.safetensors"
    assert entry["source"]["revision"] == f"sha256:{sha256_of(checkpoint)}"
    assert str(checkpoint.parent) not in open_store(store).read(NAME).to_text()


def test_another_file_is_another_artifact(checkpoint: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.safetensors"
    save_file(eager.build(request_for(NAME, weights="random", seed=6)).module.model.state_dict(), other)
    with pytest.raises(ArtifactNotFoundError, match=f"--checkpoint-path={other}"):
        load_model(NAME, backend="onnx", checkpoint_path=other, artifacts=store, on_fallback="error")


def test_a_file_replaced_under_its_name_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    keys = []
    for time, text in enumerate((b"one", b"two")):
        path.write_bytes(text)
        os.utime(path, (time, time))
        keys.append(request_for(NAME, checkpoint_path=path).weights_key)
    assert keys[0] != keys[1]


def test_a_checkpoint_of_a_gated_backbone_needs_neither_token_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    class Small:
        def __init__(self, create: object) -> None:
            self.create = create

        def __call__(self, name: str, **kwargs: object) -> object:
            return self.create(name, **{**kwargs, "depth": 1, "embed_dim": 48, "num_heads": 3})

    monkeypatch.setattr(timm, "create_model", Small(timm.create_model))
    module = timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1e-5)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    model = load_model("pathology/mahmood_uni", backend="eager", checkpoint_path=tmp_path / "pytorch_model.bin")
    assert model(np.zeros((1, 3, 224, 224), np.float32)).shape == (1, 48)


def test_a_checkpoint_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"missing .*1 of another shape \(norm.weight \(3,\) instead of"):
        load_model(NAME, backend="eager", checkpoint_path=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "given", "error", "said"),
    [
        (
            NAME,
            {"checkpoint_path": "none.bin"},
            WeightsError,
            r"none\.bin, which cannot be read: No such file",
        ),
        (NAME, {"checkpoint_path": "f", "weights": "random"}, OptionError, "exclude each other: leave one out"),
        ("test/own", {"checkpoint_path": "f"}, OptionError, "'test/own' loads its own weights; its function has no"),
        (NAME, {"weights": "checkpoint:12"}, OptionError, "is none of 'pretrained', 'random', 'checkpoint:<the first"),
        (NAME, {"weights": "checkpoint:0123456789ab"}, WeightsError, "as eager torch it needs the file itself"),
    ],
)
def test_what_cannot_be_is_refused_in_words(name: str, given: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_model(name, backend="eager", **given)


def test_one_file_is_not_the_weights_of_many(checkpoint: Path, tmp_path: Path) -> None:
    ran = run_command("test/tiny*", *TINY, "--checkpoint-path", checkpoint, "--artifacts", tmp_path)
    assert ran.status == 2
    assert "holds the weights of one backbone, and 3 were named: test/tiny_initial, test/tiny_tokens" in ran.err


def test_a_backbone_with_more_parameters_than_allowed_is_skipped_saying_so(tmp_path: Path) -> None:
    names = ("test/tiny_vit", "test/two_stages", *TINY)
    options = ("--weights=random", "--max-params=10K", "--format=onnx", "--out-indices=none", "--artifacts", tmp_path)
    dry = run_command(*names, *options, "--dry-run", "--json")
    assert [(line["key"]["target"], line["action"]) for line in dry.lines] == [
        ("cpu", "skip"),
        ("cuda", "skip"),
        ("cpu", "build"),
        ("cuda", "build"),
    ]
    ran = run_command(*names, *options)
    assert ran.status == 0
    assert "0.1 M parameters, more than --max-params allows" in ran.out
    assert [len(open_store(tmp_path).read(f"test/{n}").artifacts) for n in ("tiny_vit", "two_stages")] == [0, 2]


@pytest.mark.parametrize("text", ["many", "0", "-5M", "inf", "12Q", ""])
def test_a_number_of_parameters_is_a_number(text: str) -> None:
    ran = run_command("test/own", *TINY, f"--max-params={text}")
    assert ran.status == 2
    assert f"{text!r} is no number of parameters, such as 500M or 1.2B" in ran.err


def test_the_manifest_counts_the_parameters(store: Path) -> None:
    module = eager.build(request_for(NAME, weights="random")).module
    count = sum(p.numel() for p in module.parameters())
    assert {a.to_json()["parameters"] for a in open_store(store).read(NAME).artifacts} == {count}
    assert eager.count_parameters(request_for(NAME)) == count


def test_a_file_that_is_gone_is_named_by_every_backend() -> None:
    with pytest.raises(WeightsError, match=r"checkpoint_path='none\.bin' cannot be read: No such file"):
        load_model(NAME, backend="onnx", checkpoint_path="none.bin")
