"""timm as a family: names from a table, any architecture built, filled and cut as timm does it."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import FORMS, request_for
from test_registry import in_a_fresh_interpreter
from torch import Tensor, nn

from exporters import pipeline, plan, to_onnx
from exporters.plan import Job
from runtime import eager, list_models, registry
from runtime.backbones import timm_installed, timm_table
from runtime.backbones.timm_family import TimmBuilder
from runtime.commands import build_command
from runtime.errors import OptionError, UnknownModelError, WeightsError
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD, HubFile, LocalFile, Unpublished, Url
from runtime.loud import draw_loud
from runtime.manifest import Form
from runtime.weights import PublishedWeights


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def module_of(name: str, **options: Any) -> Any:
    return eager.build(request_for(f"timm/{name}", **{"weights": "random", **options})).module


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- names ---


def test_the_family_is_listed_only_when_a_glob_asks_for_it() -> None:
    assert not [name for name in list_models() if name.startswith("timm/")]
    assert not list_models("*resnet18*")
    assert len(list_models("timm/*")) == len(timm_table.architectures()) > 1300
    assert list_models("timm/resnet50") == ["timm/resnet50"]
    assert "timm/resnet50.a1_in1k" in list_models("timm/resnet50.*")
    assert not [name for name in list_models("timm/*") if "." in name]


def test_the_table_answers_where_no_heavy_package_can_be_imported() -> None:
    code = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "timm", "transformers", "onnx", "onnxruntime", "numpy", "PIL"]))
from runtime import list_models
from runtime.registry import find
spec = find("timm/vit_small_patch16_224.augreg_in21k")
facts = [spec.name, str(spec.source), spec.depth, spec.patch_size, spec.licence, spec.preprocessing.mean]
print(json.dumps([facts, list_models("timm/vit_tiny_patch16_*")]))
"""

    facts, names = in_a_fresh_interpreter(code)  # type: ignore[misc]

    hub = "hf://timm/vit_small_patch16_224.augreg_in21k"
    assert facts == ["timm/vit_small_patch16_224.augreg_in21k", hub, 12, 16, "apache-2.0", list(HALF)]
    assert names == ["timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_384", "timm/vit_tiny_patch16_dinov3_qkvb"]


def test_the_table_is_not_read_unless_a_name_of_timm_is_asked_for() -> None:
    code = """
import json, runtime
from runtime.backbones import timm_table
runtime.list_models(); runtime.registry.find("pathology/kaiko_vits16")
print(json.dumps(timm_table.architectures.cache_info().currsize))
"""

    assert in_a_fresh_interpreter(code) == 0


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation", "normalisation"),
    [
        ("resnet50", 224, 235, "bicubic", (IMAGENET_MEAN, IMAGENET_STD)),  # a1_in1k: crop 0.95
        ("resnet50.tv_in1k", 224, 256, "bilinear", (IMAGENET_MEAN, IMAGENET_STD)),
        ("resnet50.a3_in1k", 160, 168, "bicubic", (IMAGENET_MEAN, IMAGENET_STD)),
        ("vit_base_patch16_224.augreg_in21k", 224, 248, "bicubic", (HALF, HALF)),
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", 384, None, "bicubic", (HALF, HALF)),
    ],
)
def test_a_tag_has_its_own_preprocessing(
    name: str, size: int, resize: int | None, interpolation: str, normalisation: tuple[object, object]
) -> None:
    facts = registry.find(f"timm/{name}").preprocessing

    assert (facts.size, facts.resize, facts.interpolation, (facts.mean, facts.std)) == (
        size,
        resize,
        interpolation,
        normalisation,
    )


def test_weights_are_in_the_hub_at_a_url_or_nowhere() -> None:
    sources = [registry.find(f"timm/{n}").source for n in ("resnet18", "gcvit_xxtiny.in1k", "convnext_atto_rms")]

    assert sources[0] == HubFile("timm/resnet18.a1_in1k")
    assert isinstance(sources[1], Url)
    assert isinstance(sources[2], Unpublished)
    with pytest.raises(WeightsError, match=r"^timm/convnext_atto_rms has no published weights: .*weights='random'"):
        module_of("convnext_atto_rms", weights="pretrained")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/resnet81", "timm/resnet18"),
        ("timm/resnet50.a1_in2k", "timm/resnet50.a1_in1k"),
        ("timm/resnet50.", "timm/resnet50."),
        ("timm/", ""),
    ],
)
def test_a_name_that_timm_does_not_have_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownModelError) as error:
        registry.find(name)

    assert str(error.value).startswith(f"No backbone is registered as {name!r}. ")
    assert nearest in str(error.value).partition("Nearest:")[2]
    assert "list_models('timm/*" in str(error.value)


def test_an_architecture_of_a_newer_timm_is_asked_of_timm_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    known = timm_table.architectures()
    older = {name: a for name, a in known.items() if name != "test_resnet"}
    monkeypatch.setattr(timm_table, "architectures", lambda: older)
    found = registry._families["timm/"].resolve.__globals__["_spec"].__wrapped__("test_resnet", "test_resnet", "")

    assert found == registry.find("timm/test_resnet")


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "resnet18", "gcvit_xxtiny", "vit_so400m_patch14_siglip_384"]
)
def test_the_table_is_what_timm_says(name: str) -> None:
    if timm.__version__ == timm_table.timm_version():
        assert timm_table.architectures()[name] == timm_installed.describe(name)
    text = timm_table.to_json({name: timm_installed.describe(name)}, "1")
    assert f'"{name}":' in text


def test_the_table_reads_back_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = timm_table.architectures()
    path = tmp_path / "table.json"
    path.write_text(timm_table.to_json(known, "1.2"))
    monkeypatch.setattr(timm_table, "TABLE", path)

    assert timm_table.architectures.__wrapped__() == known
    assert timm_table.timm_version() == "1.2"
    assert path.stat().st_size < 300_000


def test_globs_and_names_of_the_build_command_reach_the_family() -> None:
    assert plan.names(["timm/resnet18"], [], False) == ["timm/resnet18"]
    assert "timm/resnet101" in plan.names(["timm/resnet1*"], [], False)
    assert "timm/resnet18.a1_in1k" in plan.names(["timm/resnet18.*"], [], False)


def test_a_spec_is_one_object_and_survives_pickling_with_what_messages_need() -> None:
    spec = registry.find("timm/test_vit")
    request = request_for("timm/test_vit", weights="random", out_indices=2)

    again = pickle.loads(pickle.dumps(request))

    assert registry.find("timm/test_vit") is spec
    assert again.spec == spec
    assert isinstance(again.spec.build, TimmBuilder)
    assert again.spec.build.__module__ == "runtime.backbones.timm_family"
    assert again.spec.build.__qualname__ == "TimmBuilder('test_vit')"
    assert spec.parameters == ("weights", "out_indices", "image_size")
    options = "--format=onnx --target=cpu --out-indices=2 --weights=random --seed=0"
    assert build_command(request, Form("onnx")) == f"python -m exporters.build timm/test_vit {options}"


def test_a_prefix_has_one_family() -> None:
    with pytest.raises(registry.RegistrationError, match="already registered for names that start with 'timm/'"):
        registry.register_family(registry._families["timm/"])


# --- outputs ---

# One of each way in which timm makes maps: a getter, a list, its own classes, NHWC, hooks.
KINDS = ["test_vit", "test_resnet", "test_efficientnet", "test_mambaout", "mobilenetv3_small_050", "test_nfnet"]


def small(name: str) -> int:
    return 160 if name.startswith("test_") else 64


@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_those_of_timm_with_maps_in_nchw(name: str) -> None:
    size = small(name)
    embedding, maps = module_of(name, image_size=size), module_of(name, image_size=size, out_indices=(-1, -3))
    theirs = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(embedding.model.state_dict())
    cut = timm.create_model(name, features_only=True, out_indices=sorted(maps.indices)).eval()
    cut.load_state_dict(maps.model.state_dict())
    images = noise(2, 3, size, size)

    with torch.no_grad():
        assert torch.equal(embedding(images), theirs(images))
        got, expected = maps(images), cut(images)

    nhwc = "NHWC" in str(getattr(cut, "output_fmt", ""))
    assert nhwc == (name == "test_mambaout")
    assert len(got) == len(expected) == 2
    for ours, their in zip(got, expected, strict=True):
        assert torch.equal(ours, their.permute(0, 3, 1, 2) if nhwc else their)
    depth = registry.find(f"timm/{name}").depth
    assert maps.indices == [depth - 3, depth - 1]
    assert maps.normed == [False, False]


@pytest.mark.parametrize("name", KINDS)
def test_the_maps_hold_the_same_weights_as_the_embedding(name: str) -> None:
    def drawn(module: nn.Module) -> set[bytes]:
        return {p.detach().numpy().tobytes() for p in module.parameters() if p.numel() > 1}

    size = small(name)
    whole, part = (drawn(module_of(name, image_size=size, **o)) for o in ({}, {"out_indices": 1}))

    assert len(part) > 10
    assert part <= whole


def test_a_map_that_ends_in_a_norm_says_so() -> None:
    assert module_of("densenet121", image_size=64, out_indices=2).normed == [False, True]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "lcnet_035"])
def test_images_do_not_fade_in_a_convolutional_net_of_random_weights(name: str) -> None:
    module = module_of(name, image_size=96)

    with torch.no_grad():
        out = module(noise(2, 3, 96, 96))

    size = out.square().mean().sqrt()
    assert 0.1 < size < 10
    assert (out[0] - out[1]).square().mean().sqrt() > 1e-3 * size


def test_random_weights_are_the_same_on_every_load_and_the_callers_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()

    first, again = (module_of("test_efficientnet").state_dict() for _ in range(2))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], tensor) for key, tensor in again.items())


# --- image sizes ---


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("test_resnet", (96, 64), (3, 2)), ("test_vit", (96, 64), (6, 4)), ("test_convnext", 96, (3, 3))],
)
def test_another_image_size_is_built(name: str, size: Any, side: tuple[int, int]) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    maps = module_of(name, image_size=size, out_indices=1)

    with torch.no_grad():
        assert maps(noise(1, 3, height, width))[0].shape[2:] == side


def test_an_architecture_that_resamples_at_every_call_does_so_once_for_a_fixed_size() -> None:
    module = module_of("test_vit4")
    theirs = timm.create_model("test_vit4", num_classes=0).eval()
    draw_loud(theirs, 0)
    images = noise(2, 3, 160, 160)

    program = to_onnx.export(module, images, ["embedding"], None)

    assert "Resize" not in {node.op_type for node in program.model.graph}
    with torch.no_grad():
        assert torch.equal(module(images), theirs(images))


def test_dynamic_sizes_give_the_numbers_of_fixed_ones() -> None:
    dynamic, fixed = module_of("test_vit", image_size="dynamic"), module_of("test_vit", image_size=(96, 64))
    images = noise(2, 3, 96, 64)

    with torch.no_grad():
        torch.testing.assert_close(dynamic(images), fixed(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("test_resnet", "dynamic", "image_size='dynamic': timm's test_resnet has no dynamic_img_size. Give the size"),
        ("hiera_tiny_224", 100, r"image_size=\(100, 100\): timm's hiera_tiny_224 does not take it: shape .\[1, "),
        (
            "inception_next_atto",
            16,
            r"image_size=\(16, 16\): timm's inception_next_atto does not .* Its own size is 224",
        ),
        ("test_vit", 100, "both sides must be multiples of timm/test_vit's patch, 16 pixels"),
    ],
)
def test_a_size_that_the_architecture_cannot_take_is_refused(name: str, size: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        module_of(name, image_size=size)


# --- published weights ---


def published(name: str, folder: Path, **changes: Tensor | None) -> tuple[PublishedWeights, dict[str, Tensor]]:
    """Return weights that read a checkpoint of the classifier that timm publishes, changed by key, and its tensors."""
    torch.manual_seed(0)
    tensors = timm.create_model(name).state_dict()
    tensors = {key: t + 0.02 * torch.rand_like(t) if t.is_floating_point() else t for key, t in tensors.items()}
    tensors |= {key: value for key, value in changes.items() if value is not None}
    tensors = {key: value for key, value in tensors.items() if key not in changes or changes[key] is not None}
    path = folder / "checkpoint.pth"
    torch.save(tensors, path)
    weights = PublishedWeights(LocalFile(path), f"timm/{name}")
    return weights, tensors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where a downloaded file would be."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_resnet",
        "test_efficientnet",
        "test_convnext",
        "mobilenetv3_small_050",
        "levit_128s",
        "deit_tiny_distilled_patch16_224",
        "pit_ti_224",
    ],
)
def test_a_published_classifier_fills_embedding_and_maps(name: str, hub: Path) -> None:
    weights, tensors = published(name, hub)
    build = registry.find(f"timm/{name}").build

    embedding, maps = build(weights=weights).model, build(weights=weights, out_indices=(0,))

    whole = timm.create_model(name).eval()
    whole.load_state_dict(tensors)
    images = noise(1, 3, *build.native)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        if "distilled" not in name:  # its two tokens are joined behind this point
            torch.testing.assert_close(embedding.eval()(images), expected)
    assert set(embedding.state_dict()) <= set(tensors)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in embedding.state_dict().items())
    held = {t.numpy().tobytes() for t in tensors.values()}
    assert {p.detach().numpy().tobytes() for p in maps.parameters()} <= held


def test_the_original_names_of_a_checkpoint_go_through_timms_own_filter(hub: Path) -> None:
    weights, tensors = published("test_convnext", hub)
    original = {key.replace("stages.0.blocks.0.conv_dw", "stages.0.0.dwconv"): t for key, t in tensors.items()}
    original = {"downsample_layers.0.0.weight": original.pop("stem.0.weight"), **original}
    calls: list[set[str]] = []

    def record(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        calls.append(set(state))
        return tensors

    torch.save(original, hub / "checkpoint.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models.convnext.checkpoint_filter_fn", record)
        registry.find("timm/test_convnext").build(weights=weights)

    assert calls == [set(original)]


def test_a_position_embedding_is_resampled_to_the_size_asked_for(hub: Path) -> None:
    weights, tensors = published("test_vit", hub)

    model = registry.find("timm/test_vit").build(weights=weights, image_size=(96, 64)).model

    assert model.pos_embed.shape[1] == tensors["pos_embed"].shape[1] - 100 + 24


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blocks.1.attn.qkv.weight": None}, r"1 missing \(blocks.1.attn.qkv.weight\)"),
        ({"norm.weight": torch.ones(7)}, r"1 of another shape \(norm.weight \(7,\) instead of \(64,\)\)"),
        ({"surplus.weight": torch.ones(7)}, r"1 unexpected \(surplus.weight\)"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"out_indices": (0,)}])
def test_a_checkpoint_that_does_not_fit_is_refused(
    changes: dict[str, Tensor | None], told: str, options: dict[str, Any], hub: Path
) -> None:
    weights, _ = published("test_vit", hub, **changes)

    with pytest.raises(WeightsError, match=told):
        registry.find("timm/test_vit").build(weights=weights, **options)


def test_counters_of_batch_normalisation_may_be_missing(hub: Path) -> None:
    weights, tensors = published("test_resnet", hub)
    torch.save({k: t for k, t in tensors.items() if "num_batches_tracked" not in k}, hub / "checkpoint.pth")

    model = registry.find("timm/test_resnet").build(weights=weights).model

    assert model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_var, tensors["bn1.running_var"])


def test_timms_own_loading_is_back_in_place_afterwards() -> None:
    from timm.models import _builder

    module_of("test_resnet")

    assert _builder.load_pretrained.__module__ == "timm.models._builder"


# --- the whole build ---


def test_a_timm_model_is_built_verified_and_served(tmp_path: Path) -> None:
    for options in ({}, {"out_indices": 2}):
        request = request_for("timm/test_mambaout", weights="random", artifacts=str(tmp_path), image_size=64, **options)
        outcomes = pipeline.build(Job(request, FORMS))
        assert [o.status for o in outcomes] == ["built", "built"], outcomes
    from runtime import load_model

    model = load_model(
        "timm/test_mambaout",
        {"out_indices": 2, "backend": "onnx", "weights": "random"},
        artifacts=tmp_path,
        image_size=64,
        device="cpu",
    )

    assert [m.shape for m in model(noise(3, 3, 64, 64).numpy())] == [(3, 48, 4, 4), (3, 64, 2, 2)]


@pytest.mark.parametrize("wrap", [{"state_dict"}, {"model_ema"}, {"state_dict_ema", "model"}])
def test_a_training_checkpoint_is_unwrapped_as_timm_does(wrap: set[str], hub: Path) -> None:
    weights, tensors = published("test_vit", hub)
    prefixed = {f"module.{key}": tensor for key, tensor in tensors.items()}
    torch.save({"epoch": 3, **{key: prefixed if key != "model" else {} for key in wrap}}, hub / "checkpoint.pth")

    model = registry.find("timm/test_vit").build(weights=weights).model

    assert torch.equal(model.cls_token, tensors["cls_token"])
