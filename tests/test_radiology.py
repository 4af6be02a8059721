"""Encoders of volumes: the numbers of what eva composes of MONAI's parts, in eager and in both exports."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from exporters import to_onnx, to_torchscript
from exporters.float64 import run_in_float64
from exporters.gate import EPSILON, LIMITS
from exporters.optimise import optimise
from exporters.parity import relative_rms
from exporters.passes.statistics import LONG
from runtime import registry
from runtime.backbones.monai_encoders import segresnet, sides, swin_unetr
from runtime.errors import OptionError, OutIndicesError, WeightsError
from runtime.facts import LibraryInit, Url
from runtime.weights import LoudWeights, check_fit

if importlib.util.find_spec("monai") is None:
    pytest.skip("needs the extra radiology", allow_module_level=True)

from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinTransformer

# As published: parameters and tensors of the checkpoint, embedding, channels of the maps; md5 of the file.
SWIN_48, SWIN_96, SWIN_192 = [(f, f, 2 * f, 4 * f, 8 * f, 16 * f) for f in (48, 96, 192)]
SEGRESNET = (16, 32, 64, 128)
FACTS = {
    "radiology/voco_b": (53164146, 145, 1152, SWIN_48, "f80c4da2f81d700bdae3df188f2057eb"),
    "radiology/voco_l": (211999362, 145, 2304, SWIN_96, "795095d1d43ef3808ec4c41798310136"),
    "radiology/voco_h": (847276194, 145, 4608, SWIN_192, "76f95a474736b60bf5b8aad94643744d"),
    "radiology/suprem_swin_unetr": (42588786, 137, 1152, SWIN_48, "72688b8e5766e87f7c3712fa7555d1fd"),
    "radiology/universal_swinunetr": (42588786, 137, 1152, SWIN_48, "1ad7a68e904cee85141b05c6bf646ace"),
    "radiology/swin_unetr_encoder": (53164146, 145, 1152, SWIN_48, None),
    "radiology/suprem_segresnet": (4399344, 58, 240, SEGRESNET, "fa044baf9a49832e7fe6ab55c9227e49"),
    "radiology/segresnet_encoder": (4399344, 58, 240, SEGRESNET, None),
}
# Not cubes, and odd: padding, windows cut short on some axes only, and an axis that is a single window.
SIZES = [(16, 66, 14), (17, 35, 33)]
LIMIT = 1e-4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@dataclass
class OnMeta:
    """Constructs without storage, and keeps the module and how a checkpoint is adapted."""

    model: Any = None
    adapt: Any = None

    def construct(self, create: Callable[[], nn.Module], adapt: Any = None) -> nn.Module:
        with torch.device("meta"):
            self.model = create()
        self.adapt = adapt
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.tensors = dict(self.model.state_dict())
        return self.model


class Stock(nn.Module):
    """Swin UNETR's encoder of MONAI's own parts, put together as eva does; all six maps."""

    def __init__(self, feature_size: int, use_v2: bool) -> None:
        super().__init__()
        self.swinViT = SwinTransformer(
            in_chans=1,
            embed_dim=feature_size,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_v2=use_v2,
        )
        for name, channels in (("1", 0), ("2", 1), ("3", 2), ("4", 4), ("10", 16)):
            inside = channels * feature_size or 1
            outside = max(channels, 1) * feature_size
            block = UnetrBasicBlock(3, inside, outside, kernel_size=3, stride=1, norm_name="instance", res_block=True)
            self.add_module(f"encoder{name}", block)

    def forward(self, volumes: Tensor) -> list[Tensor]:
        states = self.swinViT(volumes)
        convolved = [getattr(self, f"encoder{n}")(x) for n, x in ((1, volumes), (2, states[0]), (3, states[1]))]
        return [*convolved, self.encoder4(states[2]), states[3], self.encoder10(states[4])]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_swin(out_indices: Any = None, size: Any = SIZES[0], use_v2: bool = True, **options: Any) -> Any:
    return swin_unetr(LoudWeights(), out_indices, size, feature_size=12, use_v2=use_v2, **options).eval()


def tiny_segresnet(out_indices: Any = None, size: Any = SIZES[0]) -> Any:
    return segresnet(LoudWeights(), out_indices, size, filters=8).eval()


def called(module: nn.Module, volumes: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = module(volumes)
    return output if isinstance(output, list) else [output]


def pooled(maps: list[Tensor]) -> Tensor:
    return torch.cat([nn.functional.adaptive_avg_pool3d(m, 1).flatten(1) for m in maps], dim=1)


@pytest.mark.parametrize("name", FACTS)
def test_a_radiology_backbone_is_what_its_publisher_says(name: str) -> None:
    parameters, tensors, dim, channels, md5 = FACTS[name]
    spec, weights = registry.find(name), OnMeta()
    volumes = torch.empty(2, 1, 96, 96, 96, device="meta")

    embedding = spec.build(weights=weights)

    assert (weights.parameters, len(weights.tensors)) == (parameters, tensors)
    assert embedding(volumes).shape == (2, dim)
    maps = spec.build(weights=weights, out_indices=len(channels))
    shapes = [tuple(m.shape) for m in maps(volumes)]
    assert shapes == [(2, c, *3 * (96 >> level,)) for level, c in enumerate(channels)]
    assert (maps.indices, maps.normed) == (list(range(len(channels))), [False] * len(channels))
    assert spec.depth == len(channels)
    declared = spec.preprocessing
    assert (declared.size, declared.channels, declared.spatial_dims) == (96, 1, 3)
    assert (spec.extra, spec.patch_size, spec.gated) == ("radiology", 1, False)
    assert isinstance(spec.source, LibraryInit) if md5 is None else isinstance(spec.source, Url)
    assert getattr(spec.source, "md5", None) == md5
    assert (spec.licence is None) == (md5 is None)
    assert spec.options == (("embeddings_type",) if name == "radiology/swin_unetr_encoder" else ())


def test_segresnet_is_found_under_evas_name_without_the_group() -> None:
    assert registry.find("segresnet_encoder").name == "radiology/segresnet_encoder"


def test_a_backbone_without_published_weights_is_the_same_on_every_load() -> None:
    from runtime.weights import LibraryWeights

    first, again = (registry.find("segresnet_encoder").build(weights=LibraryWeights()) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("use_v2", [True, False])
def test_the_swin_encoder_gives_the_numbers_of_monais_own(use_v2: bool, size: tuple[int, int, int]) -> None:
    ours, theirs = tiny_swin(6, size, use_v2), Stock(12, use_v2).eval()
    theirs.load_state_dict(ours.encoder.state_dict(), strict=True)
    volumes = noise(2, 1, *size)

    got, expected = called(ours, volumes), called(theirs, volumes)

    assert [m.shape for m in got] == [m.shape for m in expected]
    for a, b in zip(got, expected, strict=True):
        assert relative_rms(b.numpy(), a.numpy()) < 1e-6
    embedding = called(tiny_swin(None, size, use_v2), volumes)[0]
    torch.testing.assert_close(embedding, pooled([*expected[:4], expected[5]]), rtol=0, atol=1e-5)


def test_the_segresnet_encoder_gives_the_numbers_of_monais_own() -> None:
    ours, theirs = tiny_segresnet(4, SIZES[1]), SegResNet(init_filters=8).eval()
    missing, unexpected = theirs.load_state_dict(ours.encoder.state_dict(), strict=False)
    assert not unexpected
    assert not any(key.startswith(("convInit", "down_layers")) for key in missing)
    volumes = noise(2, 1, *SIZES[1])

    with torch.no_grad():
        expected = theirs.encode(volumes)[1]

    assert all(torch.equal(a, b) for a, b in zip(called(ours, volumes), expected, strict=True))
    embedding = called(tiny_segresnet(None, SIZES[1]), volumes)[0]
    torch.testing.assert_close(embedding, pooled(expected), rtol=0, atol=1e-5)


def test_the_head_embedding_is_the_mean_of_the_deepest_map() -> None:
    volumes = noise(1, 1, *SIZES[0])

    head = called(tiny_swin(embeddings_type="head"), volumes)[0]

    assert torch.equal(head, called(tiny_swin(), volumes)[0][:, -192:])


@pytest.mark.parametrize(
    ("out_indices", "expected"),
    [(1, [5]), (2, [4, 5]), ((-1, -3), [3, 5]), ((0,), [0]), ([4, 0, 4], [0, 4]), ((1, -1), [1, 5])],
)
def test_chosen_maps_are_those_of_all_and_nothing_else_is_kept(out_indices: Any, expected: list[int]) -> None:
    volumes, whole, ours = noise(1, 1, *SIZES[0]), tiny_swin(6), tiny_swin(out_indices)

    got, maps = called(ours, volumes), called(whole, volumes)

    assert ours.indices == expected
    assert ours.normed == [False] * len(expected)
    assert all(torch.equal(a, maps[i]) for a, i in zip(got, expected, strict=True))
    kept = {name.split(".")[1] for name, _ in ours.named_parameters()}
    wanted = {("encoder1", "encoder2", "encoder3", "encoder4", "", "encoder10")[i] for i in expected} - {""}
    assert kept - {"swinViT"} == wanted
    stages = {n.split(".")[2] for n, _ in ours.named_parameters() if ".layers" in n}
    assert stages == {f"layers{i}{c}" for i in range(1, max(expected)) for c in ("", "c")}


def test_chosen_maps_of_segresnet_are_those_of_all() -> None:
    volumes = noise(1, 1, *SIZES[0])
    ours, maps = tiny_segresnet((0, -2)), called(tiny_segresnet(4), volumes)

    assert all(torch.equal(a, b) for a, b in zip(called(ours, volumes), [maps[0], maps[2]], strict=True))
    assert len(ours.encoder.down_layers) == 3


@pytest.mark.parametrize("out_indices", [0, 7, -1, (6,), (-7,), (), True, "1"])
def test_swin_maps_that_do_not_exist_are_errors(out_indices: Any) -> None:
    with pytest.raises(OutIndicesError, match="out_indices="):
        registry.find("radiology/voco_b").build(weights=OnMeta(), out_indices=out_indices)


@pytest.mark.parametrize("out_indices", [0, 5, (4,), (-5, 1)])
def test_segresnet_maps_that_do_not_exist_are_errors(out_indices: Any) -> None:
    with pytest.raises(OutIndicesError, match="out_indices="):
        registry.find("radiology/suprem_segresnet").build(weights=OnMeta(), out_indices=out_indices)


@pytest.mark.parametrize("size", ["dynamic", (96, 96), 0, (96, 0, 96), 1.5, True])
def test_a_size_that_is_none_of_a_volume_is_an_error(size: Any) -> None:
    for build in (tiny_swin, tiny_segresnet):
        with pytest.raises(OptionError, match=r"must be voxels: an int, or depth, height and width"):
            build(size=size)
    assert sides([80, 96, 64]) == (80, 96, 64)


def test_a_volume_of_which_one_voxel_would_be_left_is_an_error() -> None:
    with pytest.raises(OptionError, match="One side must be larger than 32 voxels"):
        tiny_swin(size=32)
    assert called(tiny_swin(size=(33, 32, 32)), noise(1, 1, 33, 32, 32))[0].isfinite().all()


def test_a_kind_of_embedding_that_does_not_exist_or_does_not_matter_is_an_error() -> None:
    with pytest.raises(OptionError, match="'mean' is none of 'multiscale', 'head'"):
        tiny_swin(embeddings_type="mean")
    with pytest.raises(OptionError, match="leave out embeddings_type or out_indices"):
        tiny_swin(1, embeddings_type="head")


# How each publisher's checkpoint names the encoder's tensors, and what else it holds.
LAYOUTS = {
    "radiology/suprem_swin_unetr": ("module.backbone.", ("module.backbone.decoder5.x", "module.organ_embedding")),
    "radiology/universal_swinunetr": ("module.", ("module.decoder5.x", "module.organ_embedding", "module.GAP.3.bias")),
    "radiology/suprem_segresnet": ("module.", ("module.up_layers.0.x", "module.conv_final.2.conv.bias")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_training_checkpoint_gives_the_encoders_tensors_under_their_own_names(name: str) -> None:
    weights, (prefix, surplus) = OnMeta(), LAYOUTS[name]
    registry.find(name).build(weights=weights)
    net = {prefix + key: tensor for key, tensor in weights.tensors.items()}
    checkpoint = {"net": net | {key: torch.empty(1) for key in surplus}, "epoch": 3, "optimizer": {}}
    fresh = OnMeta()
    registry.find(name).build(weights=fresh, out_indices=None)

    adapted = weights.adapt(checkpoint, fresh.model)

    assert adapted.keys() == weights.tensors.keys()
    assert all(adapted[key] is tensor for key, tensor in weights.tensors.items())
    lost = {key: tensor for key, tensor in net.items() if not key.endswith(".conv1.conv.weight")}
    with pytest.raises(WeightsError, match=r"missing .*conv1\.conv\.weight"):
        check_fit(fresh.model, weights.adapt({"net": lost}, fresh.model), name)


def test_vocos_file_is_the_encoders_state_dict_as_it_is() -> None:
    weights = OnMeta()
    registry.find("radiology/voco_b").build(weights=weights)

    assert weights.adapt is None
    stock = torch.device("cpu"), Stock(12, True).state_dict()
    assert weights.tensors.keys() == stock[1].keys()


def exported(module: nn.Module, size: tuple[int, int, int]) -> tuple[ir.Model, onnxruntime.InferenceSession]:
    names = [f"out_{i}" for i in range(len(getattr(module, "indices", "1")))]
    model = to_onnx.export(module, noise(2, 1, *size), names, None).model
    optimise(model, dynamic=False)
    data = ir.to_proto(model).SerializeToString()
    return model, onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("build", "out_indices", "size"),
    [
        (tiny_swin, None, SIZES[0]),
        (tiny_swin, (0, 2), SIZES[1]),
        (tiny_segresnet, None, SIZES[0]),
        (tiny_segresnet, 4, SIZES[1]),
    ],
)
def test_both_exports_give_eagers_numbers_at_any_batch(
    build: Any, out_indices: Any, size: tuple[int, int, int]
) -> None:
    module = build(out_indices, size)
    _, session = exported(module, size)
    traced = to_torchscript.export(module, noise(2, 1, *size))

    for batch in (1, 3, 4):
        volumes = noise(batch, 1, *size, seed=batch)
        expected = called(module, volumes)
        onnx, script = session.run(None, {"images": volumes.numpy()}), called(traced, volumes)
        assert len(onnx) == len(script) == len(expected)
        for a, b, c in zip(expected, onnx, script, strict=True):
            assert relative_rms(a.numpy(), b) < LIMIT / 10
            assert torch.equal(a, c)
        if batch == 1:
            exact = [tensor.numpy() for tensor in run_in_float64(module, volumes)]
            for a, b, c in zip(exact, expected, onnx, strict=True):
                assert a.dtype == np.float64
                own = relative_rms(a, b.numpy())
                assert 0 < own < 1e-5
                assert relative_rms(a, c) <= LIMITS["fp32", 3].float64_ratio * max(own, EPSILON)


def test_a_traced_encoder_names_no_device_of_its_own() -> None:
    traced = to_torchscript.export(tiny_swin(), noise(2, 1, *SIZES[0]))

    made = [n for n in traced.inlined_graph.nodes() if n.kind() in ("aten::zeros", "aten::full", "aten::ones")]

    assert made == []


def changed(name: str, parameter: Tensor) -> None:
    """Make every other value one per cent larger; a factor on a whole convolution is undone by an instance norm."""
    halved = parameter.view(-1)[::2]
    # Of one channel, each filter of this convolution is one factor: nothing but its sign is left behind the norm.
    halved *= -1 if name.endswith("encoder1.layer.conv3.conv.weight") else 1.01


def moved_by(model: nn.Module, size: tuple[int, int, int]) -> dict[str, float]:
    """Return how far the map that moves most does, per parameter that is changed."""
    volumes = noise(1, 1, *size)
    expected = called(model, volumes)
    moved = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            original = parameter.clone()
            changed(name, parameter)
            pairs = zip(expected, called(model, volumes), strict=True)
            moved[name] = max(relative_rms(a.numpy(), b.numpy()) for a, b in pairs)
            parameter.copy_(original)
    return moved


@pytest.mark.parametrize(
    ("build", "maps", "tensors"), [(tiny_swin, 6, 137), (tiny_segresnet, 4, 58)], ids=["Swin UNETR V2", "SegResNet"]
)
def test_one_per_cent_of_any_tensor_moves_a_map_by_more_than_the_limit(build: Any, maps: int, tensors: int) -> None:
    size = (14, 66, 14)

    moved = moved_by(build(maps, size), size)

    assert len(moved) == tensors
    assert {name: shift for name, shift in moved.items() if not shift > 3 * LIMIT} == {}


def test_activations_of_loud_encoders_keep_a_sane_range() -> None:
    volumes = noise(2, 1, *SIZES[0])

    for features in [*called(tiny_swin(6), volumes), *called(tiny_segresnet(4), volumes)]:
        assert features.isfinite().all()
        assert 0.3 < features.square().mean().sqrt() < 10
        assert (features[0] - features[1]).square().mean().sqrt() > 0.2


@pytest.mark.parametrize("size", [(96, 96, 96), (16, 28, 28)])
def test_statistics_of_a_large_map_are_as_good_as_eagers(size: tuple[int, int, int]) -> None:
    module = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2), nn.GroupNorm(1, 2)).eval()
    volumes = 3 + noise(2, 1, *size)

    model, session = exported(module, size)

    assert not any(node.op_type == "InstanceNormalization" for node in model.graph)
    assert math.prod(size) > LONG
    exact = run_in_float64(module, volumes)[0].numpy()
    (got,) = session.run(None, {"images": volumes.numpy()})
    own = relative_rms(exact, called(module, volumes)[0].numpy())
    assert relative_rms(exact, got) <= 2 * max(own, EPSILON)


def test_small_maps_keep_their_instance_norm() -> None:
    model, _ = exported(nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2)).eval(), (8, 9, 10))

    assert [node.op_type for node in model.graph].count("InstanceNormalization") == 1


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv3d(4, 6, 3, padding=1),
        nn.Conv3d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv3d(4, 6, 2, stride=2),
        nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0), dilation=(1, 1, 2), bias=False),
        nn.Conv3d(4, 6, 3, dilation=2, padding=2),
    ],
)
def test_a_convolution_in_float64_is_torchs_own(convolution: nn.Module) -> None:
    volumes = noise(2, 4, 9, 8, 7)

    got = run_in_float64(convolution, volumes)[0]

    assert got.dtype == torch.float64
    torch.testing.assert_close(got, convolution.double()(volumes.double()), rtol=0, atol=1e-13)
