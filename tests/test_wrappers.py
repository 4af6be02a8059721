"""A user's own backbone in one line, from each of the usual sources, up to an artifact that serves it."""

import inspect
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wrapped_backbones
from builds import TINY as TINY_IMPORT
from builds import Ran, run_command
from safetensors.torch import load_file, save_file
from test_registry import in_a_fresh_interpreter, install
from tiny_backbones import TINY

import runtime
from runtime import LibraryInit, LocalFile, Preprocessing, load_model, registry, wrappers
from runtime import eager as runtime_eager
from runtime.errors import (
    DependencyError,
    OptionError,
    OutIndicesError,
    RegistrationError,
    UnknownModelError,
    WeightsError,
)
from runtime.facts import HubFile
from runtime.request import make_request

NAMES = [
    "mine/checkpoint",
    "mine/checkpoint_renamed",
    "mine/function",
    "mine/function_filled",
    "mine/renamed",
    "mine/timm",
    "mine/torch_hub",
    "mine/torch_hub_own",
    "mine/transformers",
]
# Outputs that the command builds.
BUILT = {
    "mine/timm": (None, 2),
    "mine/function_filled": (None, 2),
    "mine/transformers": (2,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("user")
    wrapped_backbones.write(made)
    return made


@pytest.fixture(scope="module", autouse=True)
def registered(folder: Path) -> Iterator[None]:
    """The user's script is imported; everything is forgotten again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_specs", dict(registry._specs))
        patch.setattr(registry, "_aliases", dict(registry._aliases))
        patch.syspath_prepend(folder)
        import_module("wrapped_script")
        yield
        for module in ("wrapped_script", "wrapped_models"):
            sys.modules.pop(module, None)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def images(side: int = 32) -> Any:
    return np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)


def side(name: str) -> int:
    return registry.find(name).preprocessing.size


def eager(name: str, **options: Any) -> Any:
    return load_model(name, backend="eager", device="cpu", **options)


def timm_itself(checkpoint: Path) -> Any:
    """Return timm's own embedding of the images."""
    import timm

    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, reg_tokens=1, **TINY).eval()
    if checkpoint.suffix == ".safetensors":
        tensors = load_file(checkpoint)
    else:
        tensors = {k.removeprefix("encoder."): v for k, v in torch.load(checkpoint)["student"].items()}
    module.load_state_dict(tensors)
    with torch.no_grad():
        return module(torch.from_numpy(images())).numpy()


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("mine/timm", "vit.safetensors"),
        ("mine/renamed", "student.pth"),
        ("mine/checkpoint", "finetuned.safetensors"),
        ("mine/checkpoint_renamed", "student.pth"),
    ],
)
def test_a_timm_backbone_has_the_numbers_of_its_checkpoint(name: str, checkpoint: str, folder: Path) -> None:
    np.testing.assert_allclose(eager(name)(images()), timm_itself(folder / checkpoint), rtol=0, atol=1e-5)


def test_a_transformers_backbone_has_the_numbers_of_the_library(folder: Path) -> None:
    from transformers import Dinov2ForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    module = Dinov2ForImageClassification.from_pretrained(folder / "dinov2").eval()
    logging.enable_progress_bar()
    with torch.no_grad():
        given = module(torch.from_numpy(images(28)), output_hidden_states=True)
        plain = module.dinov2(torch.from_numpy(images(28)))

    first, last = eager("mine/transformers", out_indices=(0, -1))(images(28))

    np.testing.assert_allclose(eager("mine/transformers")(images(28)), plain.pooler_output.numpy(), rtol=0, atol=1e-5)
    for states, found in ((given.hidden_states[1], first), (plain.last_hidden_state, last)):
        tokens = states[:, 1:]
        expected = tokens.reshape(2, 2, 2, 48).permute(0, 3, 1, 2).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_torch_hub_backbone_has_the_numbers_of_its_entry(folder: Path) -> None:
    sys.path_importer_cache.clear()
    made = torch.hub.load(str(folder / "repository"), "tiny", source="local", pretrained=True, width=6)
    with torch.no_grad():
        expected = made(torch.from_numpy(images())).numpy()

    np.testing.assert_allclose(eager("mine/torch_hub")(images()), expected, rtol=0, atol=1e-6)


def test_a_torch_hub_entry_is_not_asked_for_its_weights_when_others_are_wanted(folder: Path) -> None:
    asked = folder / "repository" / "called_pretrained_True"
    asked.unlink(missing_ok=True)

    random = eager("mine/torch_hub", weights="random")
    own = eager("mine/torch_hub_own")

    assert not asked.exists()
    assert np.abs(random(images()) - eager("mine/torch_hub")(images())).max() > 0.01
    bias = dict(random.module.named_parameters())["0.bias"]
    assert bias.unique().numel() == 6
    assert dict(own.module.named_parameters())["0.bias"].tolist() == [1, 1, 1, 1]


def test_a_function_is_called_with_its_arguments_and_options() -> None:
    model, louder = eager("mine/function"), eager("mine/function", gain=2.0)

    assert model(images()).shape == (2, 6)
    assert registry.find("mine/function").options == ("gain", "dtype")
    np.testing.assert_allclose(louder.module.scale, 2 * model.module.scale)
    with pytest.raises(
        OptionError, match=r"got an unknown keyword: width\. Valid are .*; of this backbone itself: gain, "
    ):
        eager("mine/function", width=3)


def test_a_function_is_filled_with_a_checkpoint_also_where_maps_need_less_of_it() -> None:
    whole, first = eager("mine/function_filled"), eager("mine/function_filled", out_indices=(-2,))

    assert sorted(whole.module.state_dict()) == ["body.bias", "body.weight", "stem.bias", "stem.weight"]
    assert sorted(first.module.state_dict()) == ["stem.bias", "stem.weight"]
    assert set(first.module.stem.bias.tolist()) == {1.0}
    assert whole.module.scale.device.type == "cpu"


def test_every_wrapped_backbone_is_random_on_request_and_then_loud() -> None:
    for name in NAMES:
        pretrained, random = eager(name), eager(name, weights="random", seed=9)

        there = images(side(name))
        assert np.abs(random(there) - pretrained(there)).max() > 1e-3, name
        assert all(p.unique().numel() > 1 for p in random.module.parameters() if p.numel() > 1), name
        np.testing.assert_array_equal(random(there), eager(name, weights="random", seed=9)(there))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def published(store: Path) -> list[Ran]:
    """What the command built, as a user would call it."""
    common = (*TINY_IMPORT, "--import", "wrapped_script", "--artifacts", store, "--format", "onnx", "--out-indices")
    return [
        run_command("mine/timm", "mine/function_filled", *common, "none", "--out-indices", 2),
        run_command("mine/transformers", *common, 2),
    ]


@pytest.mark.parametrize(("name", "out_indices"), [(name, which) for name in BUILT for which in BUILT[name]])
def test_the_command_builds_them_and_their_artifacts_serve_the_eager_numbers(
    name: str, out_indices: int | None, published: list[Ran], store: Path
) -> None:
    assert [ran.status for ran in published] == [0, 0], "\n".join(ran.out for ran in published)
    there = images(side(name))
    options = {"out_indices": out_indices, "on_fallback": "error", "artifacts": store, "device": "cpu"}

    served = load_model(name, backend="onnx", **options)(there)  # type: ignore[arg-type]

    expected = eager(name, out_indices=out_indices)(there)
    pairs = [(served, expected)] if out_indices is None else list(zip(served, expected, strict=True))
    assert len(pairs) == (out_indices or 1)
    for found, wanted in pairs:
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_embedding_alone_is_built_of_a_torch_hub_folder_whose_path_is_not_told(
    folder: Path, tmp_path: Path
) -> None:
    ran = run_command("mine/torch_hub", *TINY_IMPORT, "--import", "wrapped_script", "--artifacts", tmp_path)

    assert ran.status == 0, ran.out
    manifest = json.loads((tmp_path / "mine/torch_hub/manifest.json").read_text())
    assert [a["key"]["out_indices"] for a in manifest["artifacts"]] == [None, None, None]
    assert {a["source"]["id"] for a in manifest["artifacts"]} == {"torch.hub:repository tiny"}
    assert [p for p in tmp_path.rglob("*") if p.is_file() and str(folder).encode() in p.read_bytes()] == []


def test_an_artifact_is_served_where_neither_torch_nor_the_users_models_can_be_imported(
    published: list[Ran], store: Path, folder: Path
) -> None:
    code = f"""
import json, sys
heavy = ["torch", "timm", "transformers", "safetensors", "onnx", "wrapped_models"]
sys.modules.update({{name: None for name in heavy if name != "wrapped_models"}})
import tiny_plugin, wrapped_script
from runtime import load_model
import numpy as np
images = np.zeros((1, 3, 32, 32), np.float32)
options = dict(backend="onnx", artifacts={str(store)!r}, on_fallback="error", device="cpu")
shapes = [load_model(n, **options)(images).shape for n in ("mine/timm", "mine/function_filled")]
print(json.dumps([shapes, "wrapped_models" in sys.modules]))
"""
    assert [ran.status for ran in published] == [0, 0]
    base = """
from runtime import Preprocessing, Url, register_model
@register_model("test/tiny_vit", preprocessing=Preprocessing(size=32), depth=3, patch_size=8, source=Url("http://x/y"))
def tiny_vit(weights, out_indices=None, image_size=32): raise AssertionError
"""
    (folder / "tiny_plugin.py").write_text(base)

    assert in_a_fresh_interpreter(code, folder) == [[[1, 48], [1, 4]], False]


@pytest.mark.usefixtures("forgetful")
def test_a_function_of_volumes_is_built_and_served(folder: Path, tmp_path: Path) -> None:
    (folder / "wrapped_volumes.py").write_text("""
from runtime import Preprocessing, wrappers
volumes = Preprocessing(spatial_dims=3, size=16, channels=1)
wrappers.function("mine/volumes", "wrapped_models:Volumes", arguments={"width": 6}, preprocessing=volumes)
""")

    ran = run_command("mine/volumes", "--import", "wrapped_volumes", "--artifacts", tmp_path, "--format", "onnx")

    assert ran.status == 0, ran.out
    batch = np.random.default_rng(0).standard_normal((2, 1, 16, 16, 16), dtype=np.float32)
    served = load_model("mine/volumes", backend="onnx", on_fallback="error", artifacts=tmp_path, device="cpu")
    np.testing.assert_allclose(served(batch), eager("mine/volumes")(batch), rtol=0, atol=1e-5)
    assert served(batch).shape == (2, 6)


def test_registering_and_listing_imports_nothing_heavy(folder: Path) -> None:
    code = """
import json, sys
from runtime import LocalFile, list_models, wrappers
from pathlib import Path
heavy = ("torch", "timm", "transformers", "safetensors", "numpy", "huggingface_hub", "onnxruntime", "wrapped_models")
wrappers.timm("mine/timm", "vit_small_patch16_224", source=LocalFile("x"))
wrappers.transformers("mine/hub", "facebook/dinov2-small")
wrappers.transformers("mine/folder", Path(sys.argv[0] or ".") / %r)
wrappers.torch_hub("mine/torch_hub", "owner/repo:v1.0", "entry")
wrappers.function("mine/function", "wrapped_models:convolutions")
wrappers.checkpoint("mine/checkpoint", "pathology/kaiko_vits16", source=LocalFile("x"))
print(json.dumps([list_models("mine/*"), [name for name in heavy if name in sys.modules]]))
"""
    names = ["mine/checkpoint", "mine/folder", "mine/function", "mine/hub", "mine/timm", "mine/torch_hub"]

    assert in_a_fresh_interpreter(code % str(folder / "dinov2"), folder) == [names, []]


def test_a_wrapped_backbone_travels_to_worker_processes() -> None:
    for name in NAMES:
        spec = registry.find(name)

        copy = pickle.loads(pickle.dumps(spec))

        assert copy.parameters == spec.parameters, name
        assert (copy.source, copy.build.__module__) == (spec.source, "wrapped_script"), name
        assert copy.build.__qualname__ == spec.build.__qualname__, name


def test_a_missing_artifact_is_told_with_the_command_that_imports_the_users_script(tmp_path: Path) -> None:
    with pytest.raises(runtime.errors.ArtifactNotFoundError, match=r"mine/timm .*--import=wrapped_script"):
        load_model("mine/timm", backend="onnx", on_fallback="error", artifacts=tmp_path)


@pytest.mark.usefixtures("forgetful")
def test_facts_come_from_the_source_unless_they_are_stated(folder: Path) -> None:
    wrappers.timm("mine/a", "vit_small_patch16_224.dino")
    wrappers.timm("mine/b", "vit_small_patch14_dinov2", source=LibraryInit(), patch_size=7, licence="MIT")
    wrappers.transformers("mine/c", "facebook/dinov2-small", revision="abc", licence="Apache-2.0", patch_size=14)
    wrappers.checkpoint("mine/d", "pathology/mahmood_uni", source=LocalFile("x"), depth=3)
    wrappers.timm("mine/e", "vit_small_patch16_224", source=LocalFile("x"), arguments={"depth": 3, "patch_size": 8})

    a, b, c, d = (registry.find(f"mine/{letter}") for letter in "abcd")
    e, folder_facts = registry.find("mine/e"), registry.find("mine/transformers")

    assert (a.source, a.patch_size, a.preprocessing.size) == (HubFile("timm/vit_small_patch16_224.dino"), 16, 224)
    assert (b.source, b.patch_size, b.licence) == (LibraryInit(), 7, "MIT")
    assert (c.source, c.licence) == (HubFile("facebook/dinov2-small", revision="abc"), "Apache-2.0")
    uni = registry.find("pathology/mahmood_uni")
    assert (d.preprocessing, d.patch_size, d.depth) == (uni.preprocessing, uni.patch_size, 3)
    assert (uni.gated, d.gated, d.licence) == (True, False, None)
    assert (a.depth, a.licence, a.preprocessing.mean) == (12, "apache-2.0", (0.485, 0.456, 0.406))
    assert (e.depth, e.patch_size, e.licence) == (3, 8, None)
    assert (folder_facts.depth, folder_facts.patch_size) == (3, 14)
    assert folder_facts.source == LocalFile(folder / "dinov2" / "model.safetensors")
    assert folder_facts.preprocessing == Preprocessing(28, 32, "bicubic", 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, Preprocessing(size=518)),
        ({"size": 384}, Preprocessing(size=384)),
        ({"size": {"height": 256, "width": 256}, "resample": 2}, Preprocessing(256, None, "bilinear")),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, Preprocessing(224, 256)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, Preprocessing(256)),
        ({"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_normalize": False}, Preprocessing(518)),
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_the_preprocessing_of_a_transformers_folder_is_read(
    declared: dict[str, Any], expected: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "image_size": 518}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(declared))

    wrappers.transformers("mine/read", tmp_path)

    assert registry.find("mine/read").preprocessing == expected


DYNAMIC = Preprocessing(size=30)
REFUSED: list[tuple[Any, str]] = [
    (
        lambda: wrappers.timm("my/x", "vit_mine_patch16_224"),
        "'my/x': nothing says which weights 'vit_mine_patch16_224' has",
    ),
    (
        lambda: wrappers.timm("my/x", "a.b", arguments={"pretrained": True}),
        "arguments= holds pretrained, which load_model",
    ),
    (lambda: wrappers.timm("my/x", "a.b", license="MIT"), r"got license\. Declared facts are: "),
    (lambda: wrappers.timm("/", "a.b"), "'/' is no name for a backbone"),
    (lambda: wrappers.transformers("my/x", "a/b/c"), "'a/b/c' is neither a repository of the hub"),
    (
        lambda: wrappers.transformers("my/x", "./gone"),
        r"gone.config\.json cannot be read: .*No such file.* save_pretrained",
    ),
    (lambda: wrappers.torch_hub("my/x", "owner/repo", "e"), "'owner/repo' does not say which state .* pin it as"),
    (lambda: wrappers.torch_hub("my/x", "repo:v1", "e"), "'repo:v1' does not say which state"),
    (lambda: wrappers.function("my/x", "build"), "'build' is no path of a function. Write 'package.module:function'"),
    (
        lambda: wrappers.function("my/x", "a:b", arguments={"out_indices": 2}),
        "arguments= holds out_indices, which load",
    ),
    (lambda: wrappers.checkpoint("my/x", "test/own", source=LocalFile("x")), "'test/own' loads its weights itself"),
]


@pytest.mark.parametrize(("register", "why"), REFUSED, ids=range(len(REFUSED)))
def test_a_registration_that_cannot_stand_is_refused_at_once(register: Any, why: str) -> None:
    before = runtime.list_models()

    with pytest.raises(RegistrationError, match=why):
        register()

    assert runtime.list_models() == before


def test_the_checkpoint_of_an_unknown_backbone_is_told_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="Nearest: pathology/kaiko_vits16"):
        wrappers.checkpoint("my/x", "pathology/kaiko_vits61", source=LocalFile("x"))


BROKEN: list[tuple[Any, type[Exception], str]] = [
    (
        ("timm", "vit_tinny_patch16_224.x"),
        RegistrationError,
        "has no architecture 'vit_tinny_patch16_224'. Nearest: vit_tiny",
    ),
    (("timm", "resnet18.x"), RegistrationError, "'resnet18' is no Vision Transformer of timm"),
    (("function", "not_there:build"), RegistrationError, "'not_there:build' cannot be imported: ModuleNotFoundError"),
    (
        ("function", "wrapped_models:gone"),
        RegistrationError,
        "cannot be imported: AttributeError: module 'wrapped_models'",
    ),
    (("function", "wrapped_models:NUMBER"), RegistrationError, "'wrapped_models:NUMBER' is a int, not a function"),
    (
        ("function", "wrapped_models:no_module"),
        RegistrationError,
        "wrapped_models:no_module returned a dict; a registered",
    ),
    (
        ("torch_hub", "{}/repository", "gone"),
        WeightsError,
        "did not give torch.hub:repository gone: RuntimeError: Cannot",
    ),
    (("torch_hub", "{}/nowhere", "tiny"), WeightsError, "did not give torch.hub:nowhere tiny: FileNotFoundError"),
    (("torch_hub", "{}/repository", "without_flag"), OptionError, "takes no 'pretrained': .* Pass pretrained=None"),
    (("torch_hub", "{}/repository", "no_module"), RegistrationError, "repository no_module returned a str"),
    (
        ("transformers", "nobody/nothing"),
        WeightsError,
        r"^config\.json says what to build, under random weights too\. my/b",
    ),
]


@pytest.mark.parametrize(("source", "kind", "why"), BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.usefixtures("forgetful")
def test_what_turns_out_wrong_when_it_is_loaded_is_named(
    source: tuple[str, ...], kind: type[Exception], why: str, weights: str, folder: Path
) -> None:
    wrapper, *where = source
    getattr(wrappers, wrapper)("my/broken", *(part.format(folder) for part in where))

    with pytest.raises(kind, match=why) as error:
        eager("my/broken", weights=weights)

    assert isinstance(error.value, runtime.errors.BackboneError)
    assert "my/broken" in str(error.value)


@pytest.mark.usefixtures("forgetful")
def test_no_advice_for_random_weights_is_given_where_they_do_not_help() -> None:
    wrappers.transformers("my/broken", "nobody/nothing")

    with pytest.raises(WeightsError) as error:
        eager("my/broken", weights="random")

    assert "build with" not in str(error.value)
    assert "hf download nobody/nothing" in str(error.value)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}, "remote code is never executed. Take a model"),
        ({"model_type": "mine"}, "the installed transformers does not know it"),
        (
            {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 9},
            "is a BertModel, not a Vision Transformer: it takes",
        ),
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_a_transformers_folder_of_something_else_is_refused_and_its_code_not_run(
    config: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    wrappers.transformers("my/broken", tmp_path)

    with pytest.raises(RegistrationError, match=why):
        eager("my/broken", weights="random")

    assert not (tmp_path / "ran").exists()


def altered(folder: Path, to: Path, change: dict[str, Any]) -> Path:
    """Copy the transformers folder with some tensors changed, or (None) left out."""
    to.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (to / file).write_text((folder / file).read_text())
    tensors = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, to / "model.safetensors")
    return to


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dinov2.layernorm.weight": None}, r"does not fit the architecture: 1 missing \(layernorm\.weight\)"),
        ({"dinov2.other": torch.ones(1)}, r"does not fit the architecture: 1 unexpected \(dinov2\.other\)"),
        ({"dinov2.embeddings.cls_token": torch.ones(1, 1, 3)}, "does not fit the configuration"),
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_a_transformers_checkpoint_is_loaded_whole_or_not_at_all(
    change: dict[str, Any], why: str, folder: Path, tmp_path: Path
) -> None:
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    wrappers.transformers("my/altered", altered(folder / "dinov2", tmp_path / "altered", change))

    with pytest.raises(WeightsError, match=why):
        eager("my/altered")

    logging.getLogger("transformers").removeHandler(handler)
    assert heard == []  # the error is the report


@pytest.mark.usefixtures("forgetful")
def test_a_transformers_model_of_the_hub_is_taken_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--me--dino"
    shutil.copytree(folder / "dinov2", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wrappers.transformers("my/hub", "me/dino", preprocessing=Preprocessing(size=28), depth=3, patch_size=14)

    built = runtime_eager.build(make_request(registry.find("my/hub"), None, {}))

    assert built.revision == commit
    np.testing.assert_array_equal(eager("my/hub")(images(28)), eager("mine/transformers")(images(28)))
    assert eager("my/hub", weights="random")(images(28)).shape == (2, 48)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters"])
@pytest.mark.usefixtures("forgetful")
def test_a_transformers_model_takes_other_sizes_than_its_own(kind: str, tmp_path: Path) -> None:
    described = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    kinds = {"ViT": "vit", "Dinov2": "dinov2", "Dinov2WithRegisters": "dinov2_with_registers"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kinds[kind], **described}))
    wrappers.transformers("my/sized", tmp_path)

    model = eager("my/sized", weights="random", image_size=(48, 32), out_indices=1)

    batch = np.random.default_rng(0).standard_normal((2, 3, 48, 32), dtype=np.float32)
    assert [m.shape for m in model(batch)] == [(2, 48, 6, 4)]
    assert eager("my/sized", weights="random", image_size=(48, 32))(batch).shape == (2, 48)


@pytest.mark.usefixtures("forgetful")
def test_the_pooler_is_taken_on_request(folder: Path) -> None:
    wrappers.transformers("my/pooled", folder / "dinov2", output="pooler")

    np.testing.assert_allclose(
        eager("my/pooled")(images(28)), eager("mine/transformers")(images(28)), rtol=0, atol=1e-6
    )


def test_what_a_wrapped_backbone_cannot_do_is_an_option_error() -> None:
    with pytest.raises(
        OptionError, match="'mine/torch_hub' gives an embedding only: its function takes no out_indices"
    ):
        eager("mine/torch_hub", out_indices=1)
    with pytest.raises(OptionError, match="'mine/function' takes 32 pixels only"):
        eager("mine/function", image_size=64)
    with pytest.raises(OptionError, match="'mine/transformers' takes a fixed size"):
        eager("mine/transformers", image_size="dynamic")
    with pytest.raises(OutIndicesError, match="The backbone has 3 blocks"):
        eager("mine/timm", out_indices=(5,))


@pytest.mark.parametrize("options", [{"image_size": 30}, {"image_size": (32, 30)}])
def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused_with_the_nearest(options: dict[str, Any]) -> None:
    for name in ("mine/timm", "mine/checkpoint"):
        with pytest.raises(OptionError, match=rf"both sides must be multiples of {name}'s patch, 8 pixels\. Nearest: "):
            eager(name, **options)


@pytest.mark.usefixtures("forgetful")
def test_a_declared_size_that_is_no_multiple_of_the_patch_is_refused_too() -> None:
    wrappers.timm("my/odd", "vit_tiny_patch16_224", source=LibraryInit(), preprocessing=DYNAMIC)

    with pytest.raises(OptionError, match=r"image_size=30: .* multiples of my/odd's patch, 16 pixels\. Nearest: 32"):
        eager("my/odd")


@pytest.mark.usefixtures("forgetful")
def test_features_only_goes_with_out_indices_where_a_function_has_both(folder: Path) -> None:
    wrappers.function("my/features", "wrapped_models:features", preprocessing=Preprocessing(size=32))

    assert registry.find("my/features").options == ("backbone",)
    assert [m.shape for m in eager("my/features", out_indices=(0, 1))(images())] == [(2, 4, 4, 4)] * 2
    assert eager("my/features")(images()).shape == (2, 4)


def test_the_parameters_of_a_function_are_the_same_read_or_imported(folder: Path) -> None:
    code = """
import json, sys
from runtime.signatures import signature
paths = ("wrapped_models:convolutions", "wrapped_models.Volumes", "wrapped_models:features")
def described(): return [[(p.name, str(p.default)) for p in signature("my/x", q).parameters.values()] for q in paths]
read = described()
assert "wrapped_models" not in sys.modules
signature.cache_clear()
import wrapped_models
print(json.dumps([read, described()]))
"""

    read, imported = in_a_fresh_interpreter(code, folder)  # type: ignore[misc]

    assert [name for name, _ in read[0]] == ["width", "out_indices", "gain", "dtype"]
    assert read[0].pop() == ["dtype", "..."]  # what only its module could tell
    assert imported[0].pop() == ["dtype", "torch.float32"]
    assert read == imported


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.requirements.installed", lambda package: package == "torch")

    with pytest.raises(DependencyError, match=r"timm and safetensors are not .*\[eager\]'"):
        eager("mine/timm")
    with pytest.raises(DependencyError, match=r"transformers is not .*\[transformers\]'"):
        eager("mine/transformers")


def test_every_wrapper_explains_its_arguments() -> None:
    for wrapper in (wrappers.timm, wrappers.transformers, wrappers.torch_hub, wrappers.function, wrappers.checkpoint):
        for parameter in inspect.signature(wrapper).parameters:
            assert f" {parameter}: " in str(wrapper.__doc__) or f"**{parameter}: " in str(wrapper.__doc__), wrapper


def test_a_plugin_registers_with_wrappers_and_a_broken_one_is_named_while_others_stay_listed(tmp_path: Path) -> None:
    line = "from runtime import LibraryInit, LocalFile, wrappers\n"
    install(
        tmp_path, "good_plugin", f"{line}wrappers.timm('plugin/vit', 'vit_small_patch16_224', source=LibraryInit())"
    )
    install(tmp_path, "bad_plugin", f"{line}wrappers.torch_hub('plugin/hub', 'owner/repo', 'entry')")
    base = "wrappers.checkpoint('plugin/tuned', 'pathology/kaiko_vits16', source=LocalFile('tuned.pth'))"
    install(tmp_path, "tuned_plugin", f"{line}{base}")
    code = """
import json, warnings
import runtime
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = runtime.list_models("plugin/*")
print(json.dumps([names, len(runtime.list_models("pathology/*")), [str(w.message) for w in caught]]))
"""

    names, others, warned = in_a_fresh_interpreter(code, tmp_path)  # type: ignore[misc]

    assert names == ["plugin/tuned", "plugin/vit"]
    assert others >= 16
    [warning] = warned
    assert warning.startswith(
        "Backbones of the installed plugin 'of_bad_plugin' (bad_plugin) are not available: RegistrationError: "
        "'plugin/hub': 'owner/repo' does not say which state of the repository."
    )
