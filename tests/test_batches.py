"""Batches of a few fixed sizes: how a batch is split, what pads it, and that nobody sees either in the numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime import Backbone, load_model
from runtime.batches import Part, serve, split
from runtime.errors import OptionError


@pytest.mark.parametrize(
    ("count", "sizes", "parts"),
    [
        (1, (1, 8), [Part(0, 1, 1)]),
        (2, (1, 8), [Part(0, 2, 8)]),
        (8, (8, 1), [Part(0, 8, 8)]),
        (9, (1, 8), [Part(0, 8, 8), Part(8, 9, 1)]),
        (70, (1, 8, 32, 64), [Part(0, 64, 64), Part(64, 70, 8)]),
        (19, (8,), [Part(0, 8, 8), Part(8, 16, 8), Part(16, 19, 8)]),
        (16, (8,), [Part(0, 8, 8), Part(8, 16, 8)]),
    ],
)
def test_a_batch_is_full_parts_of_the_largest_size_and_the_rest_in_the_next_size_up(
    count: int, sizes: tuple[int, ...], parts: list[Part]
) -> None:
    assert split(count, sizes) == parts


@pytest.mark.parametrize("count", range(1, 20))
def test_parts_cover_a_batch_once_and_have_the_sizes_asked_for(count: int) -> None:
    parts = split(count, (2, 3, 7))

    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    assert {part.size for part in parts} <= {2, 3, 7}
    assert all(part.stop - part.start <= part.size for part in parts)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_serving_in_parts_gives_the_outputs_of_the_images_in_their_order(count: int, convert: Any) -> None:
    given = convert(np.arange(count * 2, dtype=np.float32).reshape(count, 2))
    before = given + 0
    seen = []

    def run(images: Any) -> list[Any]:
        seen.append(len(images))
        return [images * 2, images[:, :1]]

    doubled, first = serve(given, (1, 4), run)

    assert type(doubled) is type(given)
    assert (doubled == given * 2).all()
    assert (first == given[:, :1]).all()
    assert (len(doubled), len(first)) == (count, count)
    assert seen == [part.size for part in split(count, (1, 4))]
    assert (given == before).all()


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_a_session_that_writes_into_the_same_memory_each_time_loses_nothing(convert: Any) -> None:
    memory = convert(np.zeros((4, 2), np.float32))

    def run(images: Any) -> list[Any]:
        memory[:] = images
        return [memory]

    given = convert(np.arange(22, dtype=np.float32).reshape(11, 2))

    assert (serve(given, (4,), run)[0] == given).all()


def test_padding_repeats_a_real_image_so_that_no_value_is_new_to_the_batch() -> None:
    def run(images: np.ndarray) -> list[Any]:
        assert images.shape == (8, 2)
        assert images.min() == 5
        return [images]

    serve(np.arange(5, 11, dtype=np.float32).reshape(3, 2), (8,), run)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), dtype=np.float32)


def load(backend: str, built: Path, **options: Any) -> Backbone:
    return load_model(
        "test/tiny_vit", backend=backend, weights="random", artifacts=built, on_fallback="error", **options
    )


@pytest.mark.parametrize("backend", ["eager", "onnx", "torchscript"])
@pytest.mark.parametrize("out_indices", [None, 2])
def test_batch_sizes_change_no_number_on_any_backend(backend: str, out_indices: int | None, built: Path) -> None:
    plain = load(backend, built, out_indices=out_indices)
    in_parts = load(backend, built, out_indices=out_indices, batch_sizes=[4, 1])

    for count in (1, 3, 4, 11):
        for given in (images(count), torch.from_numpy(images(count))):
            expected, got = plain(given), in_parts(given)
            for one, other in zip(*([expected], [got]) if out_indices is None else (expected, got), strict=True):
                assert (type(one), one.shape) == (type(other), other.shape)
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "onnx", "torchscript"])
def test_what_pads_a_batch_never_reaches_its_numbers(backend: str, built: Path) -> None:
    padded = load(backend, built, batch_sizes=(8,))
    plain = load(backend, built)
    full = images(8)

    for count in (1, 5, 7):
        # Any other images in the place of the padding give the same, bit by bit.
        np.testing.assert_array_equal(padded(full[:count]), plain(full)[:count])


@pytest.mark.parametrize("sizes", [(), (0,), (8, -1), (2.0,), (True,), ("8",)])
def test_batch_sizes_that_cannot_be_are_refused_in_words(sizes: Any) -> None:
    with pytest.raises(OptionError, match="must be ints of at least 1, such as"):
        load_model("test/tiny_vit", batch_sizes=sizes)


@pytest.mark.parametrize("sizes", [8, "1,8"])
def test_a_batch_size_alone_is_a_list_of_one(sizes: Any) -> None:
    with pytest.raises(OptionError, match="must be a list, even of one"):
        load_model("test/tiny_vit", batch_sizes=sizes)
