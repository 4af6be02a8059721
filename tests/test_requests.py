"""What may be asked of load_model, in which spellings, and what a wrong request is told."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime import BackboneModelRegistry, load_model, registry
from runtime.errors import ArtifactNotFoundError, BackendFallbackWarning, DeviceError, OptionError, OutIndicesError
from runtime.manifest import Form, options_key
from runtime.out_indices import canonical, flag, label
from runtime.request import make_request

EAGER = {"backend": "eager", "weights": "random"}
PATCHES = "both sides must be multiples of test/tiny_vit's patch, 8 pixels"


def request(name: str, model_kwargs: dict | None = None, **given: Any) -> Any:
    return make_request(registry.find(name), model_kwargs, given)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("spelling", "depth", "expected", "shortest"),
    [
        (None, 12, None, "embedding"),
        (1, 12, (-1,), "1"),
        (4, 12, (-4, -3, -2, -1), "4"),
        (12, 12, tuple(range(-12, 0)), "12"),
        ((-1, -2), 12, (-2, -1), "2"),
        ([10, 11], 12, (-2, -1), "2"),
        ((11, -2, -1), 12, (-2, -1), "2"),
        ((-2, -4), 12, (-4, -2), "-4,-2"),
        ((0,), 12, (-12,), "-12"),
        (range(3), 3, (-3, -2, -1), "3"),
        (2, None, (-2, -1), "2"),
        ((3, 1, 3), None, (3, 1), "3,1"),
    ],
)
def test_every_spelling_of_out_indices_has_one_canonical_form(
    spelling: Any, depth: int | None, expected: tuple[int, ...] | None, shortest: str
) -> None:
    assert canonical(spelling, depth) == expected
    assert label(expected) == shortest
    assert flag(expected) == f"--out-indices={'none' if expected is None else shortest}"


@pytest.mark.parametrize(
    ("out_indices", "said"),
    [
        (0, "out_indices=0: the number of last feature maps is 1 to 3."),
        (-1, "out_indices=-1: the number of last feature maps is 1 to 3."),
        (4, "out_indices=4: the number of last feature maps is 1 to 3."),
        ((0, 3), "out_indices=(0, 3): 3 out of range. The backbone has 3 blocks: 0 to 2, or -3 to -1."),
        ([-4, 1, 9], "out_indices=(-4, 1, 9): -4, 9 out of range."),
        ((), "out_indices=() must hold one or more ints."),
        ((1, 1.0), "out_indices=(1, 1.0) must hold one or more ints."),
        ((True,), "out_indices=(True,) must hold one or more ints."),
        ("2", "out_indices='2' is neither None, an int nor a sequence of ints."),
        (True, "out_indices=True is neither"),
        (2.0, "out_indices=2.0 is neither"),
        ({1, 2}, "out_indices={1, 2} is neither"),
    ],
)
def test_out_indices_that_name_no_map_are_refused_before_anything_is_loaded(out_indices: Any, said: str) -> None:
    with pytest.raises(OutIndicesError) as error:
        load_model("test/tiny_vit", out_indices=out_indices)

    assert str(error.value).startswith(said)


@pytest.mark.parametrize("out_indices", [0, -3])
def test_a_number_of_maps_below_one_is_refused_where_the_depth_is_unknown(out_indices: int) -> None:
    with pytest.raises(OutIndicesError, match="the number of last feature maps is at least 1"):
        canonical(out_indices, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "tensorflow"},
         "backend='tensorflow' is none of 'auto', 'onnx', 'openvino', 'pt2', 'torchscript', 'eager'."),
        ({"precision": "fp8"}, "precision='fp8' is none of 'fp32', 'fp16', 'bf16', 'int8'."),
        ({"input": "int8"}, "input='int8' is none of 'float32', 'uint8'."),
        ({"on_fallback": "ignore"}, "on_fallback='ignore' is none of 'warn', 'error'."),
        ({"weights": "none"}, "weights='none' is none of 'pretrained', 'random', 'checkpoint:<the"),
        ({"verify": True}, "verify=True is none of 'size', 'full'."),
        ({"threads": 0}, "threads=0 must be an int of at least 1"),
        ({"threads": 1.5}, "threads=1.5 must be"),
        ({"threads": True}, "threads=True must be"),
        ({"seed": "1"}, "seed='1' must be an int."),
        ({"seed": 1.0}, "seed=1.0 must be an int."),
        ({"providers": "CPUExecutionProvider"}, "providers='CPUExecutionProvider' must be a list"),
        ({"provider_options": {"device_id": 1}}, "provider_options={'device_id': 1} must be a list"),
        ({"image_size": 33}, f"image_size=33: {PATCHES}. Nearest: 32."),
        ({"image_size": 3}, f"image_size=3: {PATCHES}. Nearest: 8."),
        ({"image_size": (32, 45)}, f"image_size=(32, 45): {PATCHES}. Nearest: (32, 48)."),
        *(
            ({"image_size": size}, f"image_size={size!r} must be pixels (an int, or height and width) or 'dynamic'.")
            for size in (0, -32, 32.0, True, "32", (32,), (32, 32, 3), (32, 0), (32.0, 32), {"height": 32})
        ),
        ({"image_sise": 32}, "load_model('test/tiny_vit') got an unknown keyword: image_sise. Valid are out_indices, "
         "backend, device, precision, input, on_fallback, artifacts, providers, provider_options, threads, weights, "
         "seed, image_size, verify, load, batch_sizes, reuse_outputs, cuda_graphs, gpu_mem_limit, checkpoint_path; "
         "of this backbone itself: none."),
        ({"spec": 1, "options": {}}, "load_model('test/tiny_vit') got an unknown keyword: options, spec. Valid are"),
    ],
)  # fmt: skip
def test_a_keyword_or_value_that_cannot_be_is_refused_in_words(given: dict, said: str) -> None:
    for model_kwargs, direct in ((None, given), (given, {})):
        with pytest.raises(OptionError) as error:
            load_model("test/tiny_vit", model_kwargs, **direct)
        assert str(error.value).startswith(said)


def test_an_unknown_keyword_is_told_the_backbones_own_options() -> None:
    with pytest.raises(OptionError, match=r"of this backbone itself: include_patch_tokens\.$"):
        load_model("test/tiny_tokens", include_patch_token=True)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("test/own", {"out_indices": 2}, "'test/own' gives an embedding only: its function takes no out_indices."),
        ("test/own", {"image_size": 64}, "image_size=64: 'test/own' takes 32 pixels only"),
        ("test/own", {"image_size": "dynamic"}, "image_size='dynamic': 'test/own' takes 32 pixels only"),
    ],
)
def test_what_a_registered_function_has_no_parameter_for_cannot_be_asked(name: str, given: dict, said: str) -> None:
    with pytest.raises(OptionError) as error:
        load_model(name, backend="eager", **given)

    assert str(error.value).startswith(said)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", 0])
def test_what_is_no_device_is_refused(device: Any) -> None:
    with pytest.raises(DeviceError, match=f"^device='{device}' is not a device"):
        load_model("test/own", backend="eager", device=device)


def test_a_keyword_may_come_directly_or_inside_model_kwargs_but_not_twice() -> None:
    direct = request("test/tiny_tokens", None, out_indices=2, seed=3, image_size=48)

    assert direct == request("test/tiny_tokens", {"out_indices": 2, "seed": 3, "image_size": 48})
    assert direct == request("test/tiny_tokens", {"seed": 3, "image_size": 48}, out_indices=2)
    with pytest.raises(OptionError, match=r"^out_indices, seed given both directly and inside model_kwargs"):
        request("test/tiny_tokens", {"out_indices": 2, "seed": 3}, out_indices=2, seed=4)


PLAIN: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"out_indices": 2}, {"out_indices": (-1, 1)}, True),
        ({"image_size": 32}, PLAIN, True),
        ({"image_size": [32, 32]}, PLAIN, True),
        ({"include_patch_tokens": False}, PLAIN, True),
        ({"device": None, "seed": None, "image_size": None}, PLAIN, True),
        ({"seed": 3, "threads": 2, "device": "cpu", "verify": "full"}, PLAIN, True),
        ({"out_indices": 1}, PLAIN, False),
        ({"image_size": (32, 40)}, {"image_size": (40, 32)}, False),
        ({"image_size": "dynamic"}, PLAIN, False),
        ({"include_patch_tokens": True}, PLAIN, False),
        ({"weights": "random"}, PLAIN, False),
        ({"weights": "random", "seed": 1}, {"weights": "random"}, False),
    ],
)
def test_equal_requests_have_one_artifact_and_others_have_their_own(one: dict, other: dict, equal: bool) -> None:
    keys = [request("test/tiny_tokens", **given).key(Form("onnx")) for given in (one, other)]

    assert (keys[0] == keys[1]) is equal
    assert keys[0] != request("test/tiny_tokens", **one).key(Form("torchscript"))


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        (None, {}, "warn"),
        ("", {}, "warn"),
        ("error", {}, "error"),
        ("error", {"on_fallback": "warn"}, "warn"),
        ("error", {"model_kwargs": {"on_fallback": "warn"}}, "warn"),
        ("warn", {"on_fallback": "error"}, "error"),
    ],
)
def test_the_environment_sets_what_happens_without_an_artifact_unless_the_call_does(
    environment: str | None, given: dict, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if environment is not None:
        monkeypatch.setenv("BACKBONE_ON_FALLBACK", environment)

    if expected == "error":
        with pytest.raises(ArtifactNotFoundError):
            load_model("test/own", artifacts=tmp_path, **given)
    else:
        with pytest.warns(BackendFallbackWarning):
            load_model("test/own", artifacts=tmp_path, **given)


def test_providers_do_not_stand_in_the_way_of_the_fallback(tmp_path: Path) -> None:
    with pytest.warns(BackendFallbackWarning):
        model = load_model("test/own", providers=["CPUExecutionProvider"], artifacts=tmp_path)

    assert copy.deepcopy(model)(images()).shape == (2, 5)


def test_an_environment_variable_with_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE_ON_FALLBACK", "eror")

    with pytest.raises(OptionError, match=r"^on_fallback='eror' is none of"):
        load_model("test/own")


def test_the_call_that_evas_documentation_shows_works() -> None:
    maps = BackboneModelRegistry.load_model(model_name="test/tiny_vit", **{"out_indices": 2}, **EAGER)(images())
    same = BackboneModelRegistry.load_model("test/tiny_vit", {"out_indices": 2, **EAGER})(images())

    assert [m.shape for m in maps] == [(2, 48, 4, 4)] * 2
    assert all(torch.equal(a, b) for a, b in zip(maps, same, strict=True))


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_providers_are_refused_by_backends_that_have_none(backend: str) -> None:
    with pytest.raises(OptionError, match="are onnxruntime's: backend='" + backend):
        request("test/tiny_vit", backend=backend, providers=["CPUExecutionProvider"])


def test_options_are_the_same_key_before_and_after_json() -> None:
    assert options_key({"b": (1, 2), "a": True}) == options_key({"a": True, "b": [1, 2]})
    hash(options_key({"b": [1, 2]}))
