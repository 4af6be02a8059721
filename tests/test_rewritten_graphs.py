"""What torch's exporter cannot translate, or onnxruntime computes otherwise, is rewritten: tiny models of each kind."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters import optimise, to_onnx
from exporters.attention import attention
from exporters.float64 import run_in_float64
from exporters.gate import EPSILON
from exporters.parity import relative_rms
from exporters.passes import statistics
from runtime.errors import ExportError
from runtime.loud import draw_loud


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


class Attention(nn.Module):
    """Attention within each image, in tensors of `rank` dimensions."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.between = [3, 2, 2, 2][: rank - 2]  # batch, tokens, 12 channels; then more between them

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.qkv(images.flatten(2).reshape(images.shape[0], 24, 12))
        grouped = [t.reshape(images.shape[0], *self.between[:-1], -1, 12) for t in tokens.chunk(3, -1)]
        return F.scaled_dot_product_attention(*grouped).flatten(1)


def run(module: nn.Module, images: Tensor, outputs: int = 1, count: int | None = None) -> tuple[list[Any], ir.Model]:
    """Return what onnxruntime gives for (the first `count`) images on the exported, optimised graph; and the graph."""
    names = [f"output_{i}" for i in range(outputs)]
    program = to_onnx.export(module.eval(), images[:2], names, None)
    optimise.optimise(program.model, dynamic=False)
    graph = ir.to_proto(program.model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images[:count].numpy()}), program.model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_attention_of_any_rank_is_exported(rank: int) -> None:
    module, images = Attention(rank), noise(5, 3, 12, 8)

    got, _ = run(module, images)

    with torch.no_grad():
        assert relative_rms(module(images).numpy(), got[0]) < 1e-6


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 3, 2, 5, 8)])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.7}, {"is_causal": True}, {"attn_mask": noise(5, 5)}, {"attn_mask": noise(5, 5) > -1}],
    ids=["plain", "scale", "causal", "added mask", "boolean mask"],
)
def test_the_plain_attention_gives_what_torch_gives(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    query, key, value = noise(3, *shape)

    expected = F.scaled_dot_product_attention(query, key, value, **options)

    torch.testing.assert_close(attention(query, key, value, **options), expected, rtol=1e-5, atol=1e-6)


def test_what_the_plain_attention_does_not_do_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="dropout or grouped queries"):
        attention(*noise(3, 2, 5, 8), dropout_p=0.5)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "hiera": lambda: timm.models.hiera.Hiera(
        img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), num_classes=0
    ),
    "nest": lambda: timm.models.nest.Nest(
        img_size=64, patch_size=4, num_levels=2, embed_dims=(16, 32), num_heads=(2, 4), depths=(1, 1), num_classes=0
    ),
    "twins": lambda: timm.models.twins.Twins(
        img_size=64,
        embed_dims=(16, 32),
        num_heads=(1, 2),
        mlp_ratios=(2, 2),
        depths=(2, 2),
        sr_ratios=(4, 2),
        wss=(4, 4),
        num_classes=0,
    ),
    "samvit": lambda: timm.models.vision_transformer_sam.VisionTransformerSAM(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, window_size=4, global_attn_indexes=(1,),
        neck_chans=16, use_abs_pos=True, use_rel_pos=True, num_classes=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_attention_beyond_four_dimensions_are_exported(family: str) -> None:
    module, images = FAMILIES[family](), noise(3, 3, 64, 64)
    draw_loud(module, 0)

    got, _ = run(module, images)

    with torch.no_grad():
        assert relative_rms(module(images).numpy(), got[0]) < 1e-5


def test_an_export_that_fails_tells_the_first_cause_in_one_line() -> None:
    class Sorted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.sum() > 0:
                return images
            return -images

    with pytest.raises(ExportError) as error:
        to_onnx.export(Sorted(), noise(2, 3, 8, 8), ["output"], None)

    assert str(error.value).startswith("torch.onnx could not export it: ")
    assert "data-dependent" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


class Resized(nn.Module):
    """Resizing of images."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(28, 25), mode=self.mode, align_corners=False)


def test_bicubic_resizing_of_images_has_torchs_own_coefficients() -> None:
    module, images = Resized("bicubic"), 20 * noise(3, 3, 120, 97).sign()

    got, model = run(module, images)

    assert {node.op_type for node in model.graph} & {"Resize", "MatMul"} == {"MatMul"}
    assert relative_rms(module(images).numpy(), got[0]) < 2e-7


def test_other_resizing_of_images_is_left_as_it_is() -> None:
    module, images = Resized("bilinear"), noise(3, 3, 20, 30)

    got, model = run(module, images)

    assert "Resize" in {node.op_type for node in model.graph}
    np.testing.assert_allclose(module(images).numpy(), got[0], atol=1e-5)


def test_the_matrices_of_a_resize_are_stored_as_weights_are(tmp_path: Path) -> None:
    from exporters.pool import WeightPool
    from runtime.manifest import Manifest

    module, images = Resized("bicubic"), noise(3, 3, 120, 97)
    program = to_onnx.export(module, images[:2], ["output"], None)
    pool = WeightPool(tmp_path, Manifest("test/resized"), tmp_path)

    optimise.optimise(program.model, dynamic=False)
    files = to_onnx.write(program.model, pool, tmp_path / "graph.onnx", {})

    assert len(files) == 1
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    assert relative_rms(module(images).numpy(), session.run(None, {"images": images.numpy()})[0]) < 2e-7


class Reduced(nn.Module):
    """Convolved images, reduced over some dimensions; `dims` of 1 are those of tokens [B, N, C]."""

    def __init__(self, reduce: Callable[..., Tensor], dims: tuple[int, ...], keepdim: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)
        self.reduce, self.dims, self.keepdim = reduce, dims, keepdim

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        if self.dims == (1,):
            maps = maps.flatten(2).transpose(1, 2)
        return self.reduce(maps, dim=self.dims, keepdim=self.keepdim)


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, torch.linalg.vector_norm, torch.var])
@pytest.mark.parametrize("dims", [(2, 3), (-1, -2), (1,), (1, 2, 3)])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize(
    "size", [(56, 60), (1, 577), (37, 37), (1, 1370)], ids=["56 x 60", "a prime number", "37 x 37", "37 x 37 and one"]
)
def test_reductions_of_many_values_are_as_good_as_eagers(
    reduce: Callable[..., Tensor], dims: tuple[int, ...], keepdim: bool, size: tuple[int, int]
) -> None:
    module, images = Reduced(reduce, dims, keepdim), 1 + 0.1 * noise(3, 3, *size)
    draw_loud(module, 0)

    got, model = run(module, images)

    counts = [width(node) for node in reductions(model)]
    assert max(counts) <= (statistics.LONG_OVER_ROWS if dims == (1,) else statistics.ROW)
    exact = run_in_float64(module, images)[0].numpy()
    with torch.no_grad():
        own = relative_rms(exact, module(images).numpy())
    assert relative_rms(exact, got[0]) <= 2 * max(own, EPSILON)


@pytest.mark.parametrize("side", [6, 14, 16, 37])
def test_the_mean_of_one_images_equal_tokens_is_as_good_as_eagers(side: int) -> None:
    module, images = Reduced(torch.mean, (1,)), torch.full((2, 3, side, side), 0.25)
    draw_loud(module, 0)

    got, _ = run(module, images, count=1)

    exact = run_in_float64(module, images[:1])[0].numpy()
    with torch.no_grad():
        own = relative_rms(exact, module(images[:1]).numpy())
    assert relative_rms(exact, got[0]) <= 2 * max(own, EPSILON)


@pytest.mark.parametrize("most", [statistics.LONG_OVER_ROWS, statistics.ROW])
def test_no_sum_is_of_more_values_than_the_most_and_little_is_filled_up(most: int) -> None:
    for count in range(most + 1, 5000):
        build = statistics._Builder(1, count, (8,) if most == statistics.LONG_OVER_ROWS else ())

        assert max(build.widths) <= most
        assert math.prod(build.widths) == count + build.padding
        assert build.padding < most


def width(node: ir.Node) -> int:
    """Return how many values each result of a reduction over one dimension is made of."""
    source, axes = node.inputs[0], node.inputs[1]
    assert source is not None
    assert source.shape is not None
    assert axes is not None
    tensor = ir.convenience.get_const_tensor(axes)
    assert tensor is not None
    [axis] = tensor.numpy()
    return int(source.shape[axis])


def reductions(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that reduce, of a model whose shapes were inferred anew."""
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    return [node for node in inferred.graph.all_nodes() if node.op_type in statistics.REDUCTIONS]


@pytest.mark.parametrize(
    ("dims", "size"), [((2, 3), (16, 20)), ((1, 3), (8, 300)), ((0,), (30, 30))], ids=["few", "apart", "the batch"]
)
def test_other_reductions_are_left_as_they_are(dims: tuple[int, ...], size: tuple[int, int]) -> None:
    program = to_onnx.export(Reduced(torch.mean, dims).eval(), noise(2, 3, *size), ["output"], None)

    assert statistics.reduce_by_rows(program.model) is False


def test_the_statistics_of_a_groups_maps_are_as_good_as_eagers() -> None:
    module, images = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(4, 4)), 0.25 + 0.01 * noise(3, 3, 56, 56)
    draw_loud(module, 0)

    got, _ = run(module, images)

    exact = run_in_float64(module, images)[0].numpy()
    with torch.no_grad():
        own = relative_rms(exact, module(images).numpy())
    assert relative_rms(exact, got[0]) <= 2 * max(own, EPSILON)
