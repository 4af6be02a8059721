"""Random weights are loud: a small change of any tensor is a change that verification would see."""

from collections.abc import Iterator

import pytest
import torch
from tiny_backbones import TINY
from torch import Tensor, nn

from exporters.gate import LIMITS
from exporters.parity import relative_rms
from runtime import eager, registry
from runtime.backbones.timm_vit import timm_vit
from runtime.loud import draw_loud, settle
from runtime.request import make_request
from runtime.weights import LibraryWeights, LoudWeights

LIMIT = LIMITS["fp32", 2].relative_rms


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are fastest without threads, by far on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 8),
    )


def loud_convolutions(seed: int = 0) -> nn.Module:
    model = convolutions()
    draw_loud(model, seed)
    return model


def built(name: str, seed: int = 0, **options: object) -> nn.Module:
    request = make_request(registry.find(name), None, {"weights": "random", "seed": seed, **options})
    return eager.build(request).module


def output(model: nn.Module) -> Tensor:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = model.eval()(images)
    return torch.cat([m.flatten() for m in result]) if isinstance(result, list) else result


def shifts(model: nn.Module) -> dict[str, float]:
    """Return how far the output moves, per tensor that is made larger by one per cent."""
    expected = output(model)
    moved = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            original = tensor.clone()
            tensor.mul_(1.01)
            moved[name] = relative_rms(expected.numpy(), output(model).numpy())
            tensor.copy_(original)
    return moved


@pytest.mark.parametrize(
    ("build", "tensors"),
    [
        (lambda: built("test/tiny_vit"), 49),
        (lambda: built("test/tiny_vit", out_indices=2), 47),
        (lambda: built("test/tiny_tokens", include_patch_tokens=True), 49),
        (lambda: timm_vit("vit_tiny_patch16_224", LoudWeights(), None, 32), 150),
        (loud_convolutions, 13),
    ],
    ids=["embedding", "maps", "with patch tokens", "ViT-Ti/16 of 12 blocks", "with batch statistics"],
)
def test_one_per_cent_of_any_tensor_moves_the_output_by_ten_times_the_limit_of_verification(
    build: object, tensors: int
) -> None:
    moved = shifts(build())  # type: ignore[operator]

    assert len(moved) == tensors
    assert {name: shift for name, shift in moved.items() if not shift > 10 * LIMIT} == {}


def test_a_librarys_own_initialisation_would_hide_such_a_change() -> None:
    quiet = timm_vit("vit_tiny_patch16_224", LibraryWeights(), None, 32, **TINY)

    hidden = {name for name, shift in shifts(quiet).items() if not shift > LIMIT}

    assert {"model.blocks.0.attn.qkv.weight", "model.blocks.0.ls1.gamma", "model.blocks.0.mlp.fc1.bias"} <= hidden


def test_batch_statistics_are_drawn_and_other_buffers_are_left_alone() -> None:
    model = convolutions()
    model.register_buffer("table", torch.arange(4.0))

    draw_loud(model, 0)

    for norm in (model[1], model[4]):
        assert norm.running_mean.abs().min() > 0
        assert (norm.running_var - 1).abs().min() > 0
        assert 0.5 <= norm.running_var.min() <= norm.running_var.max() <= 1.5
        assert norm.num_batches_tracked == 0
    assert torch.equal(model.table, torch.arange(4.0))


@pytest.mark.parametrize("options", [{"out_indices": 1}, {"out_indices": (0,)}, {"image_size": "dynamic"}])
def test_a_tensor_keeps_its_values_whatever_else_the_model_has(options: dict) -> None:
    whole, part = built("test/tiny_vit").state_dict(), built("test/tiny_vit", **options).state_dict()

    assert part.keys() <= whole.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in part.items())


def test_a_tensor_is_drawn_alike_in_a_model_that_lacks_others() -> None:
    whole, part = convolutions(), convolutions()
    part[3] = nn.Identity()
    for model in (whole, part):
        draw_loud(model, 0)

    assert len(part.state_dict()) == len(whole.state_dict()) - 2
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in part.state_dict().items())


def test_two_tensors_of_one_shape_differ() -> None:
    tensors = built("test/tiny_vit").state_dict()

    assert not torch.equal(tensors["model.blocks.0.attn.qkv.weight"], tensors["model.blocks.1.attn.qkv.weight"])
    assert not torch.equal(tensors["model.blocks.0.norm1.bias"], tensors["model.blocks.0.norm2.bias"])


@pytest.mark.parametrize("build", [lambda seed: built("test/tiny_vit", seed), loud_convolutions])
def test_one_seed_gives_the_same_numbers_and_another_seed_gives_others_everywhere(build: object) -> None:
    first, again, other = (build(seed).state_dict() for seed in (1, 1, 2))  # type: ignore[operator]
    drawn = [name for name, tensor in first.items() if tensor.is_floating_point()]

    assert all(torch.equal(first[name], again[name]) for name in drawn)
    assert [name for name in drawn if torch.equal(first[name], other[name])] == []


def test_the_callers_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()

    built("test/tiny_vit")

    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("variant", [{}, {"init_values": None}, {"reg_tokens": 4, "no_embed_class": True}])
def test_activations_keep_a_sane_range_through_forty_blocks(variant: dict) -> None:
    deep = TINY | {"depth": 40, "weight_init": "skip"} | variant
    maps = timm_vit("vit_tiny_patch16_224", LoudWeights(), 40, 32, **deep).eval()

    with torch.no_grad():
        activations = maps(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    assert len(activations) == 40
    for activation in activations:
        assert activation.isfinite().all()
        assert 0.5 < activation.square().mean().sqrt() < 10
        # Neither the images nor the positions in them have become alike.
        assert activation.std((0, 2, 3)).mean() > 0.2
        assert (activation[0] - activation[1]).square().mean().sqrt() > 0.2


def test_batch_statistics_settle_on_what_passes_through_by_powers_of_two() -> None:
    drawn, settled = loud_convolutions(), loud_convolutions()
    images = 20 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    settle(settled, images)

    for index in (1, 4):
        octaves = (settled[index].running_var / drawn[index].running_var).log2()
        assert octaves.unique().numel() == 1
        assert octaves[0] == octaves[0].round() != 0
        seen: list[Tensor] = []
        hook = settled[index].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        settled.eval()(images)
        hook.remove()
        passed = seen[0].transpose(0, 1).flatten(1).var(1).mean() / (settled[index].running_var.mean())
        assert 0.3 < passed < 3
    assert settled.training is False


def test_a_model_without_batch_statistics_is_not_run_to_settle_them() -> None:
    settle(nn.Linear(3, 3), torch.empty(0, 17))


def test_images_alike_do_not_make_the_statistics_of_averaged_maps_small() -> None:
    squeezed = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
    draw_loud(squeezed, 0)

    settle(squeezed, 20 * torch.randn(4, 3, 256, 256, generator=torch.Generator().manual_seed(0)).sign())

    with torch.no_grad():
        flat = squeezed.eval()(torch.tensor([0.25, 1.0, -2.0]).reshape(3, 1, 1, 1).expand(3, 3, 8, 8))
    assert 0.3 < flat.square().mean().sqrt() < 5
