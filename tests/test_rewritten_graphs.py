"""What torch's exporter cannot translate, or onnxruntime computes otherwise, is rewritten: tiny models of each kind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters import optimise, to_onnx
from exporters.attention import attention
from exporters.verify import relative_rms
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


def run(module: nn.Module, images: Tensor, outputs: int = 1) -> tuple[list[Any], ir.Model]:
    """Return what onnxruntime gives for `images` on the exported and optimised graph of `module`, and the graph."""
    names = [f"output_{i}" for i in range(outputs)]
    program = to_onnx.export(module.eval(), images[:2], names, None)
    optimise.optimise(program.model, dynamic=False)
    graph = ir.to_proto(program.model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()}), program.model


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
