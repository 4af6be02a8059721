"""Arrays of pixels in .npy files."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from runtime.embedding.decode import decode
from runtime.embedding.sources import open_source
from runtime.errors import InputError


def pixels(count: int = 300, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("start", [0, 1, 255, 256, 299, 300])
def test_images_are_numbered_rows_read_from_any_on(tmp_path: Path, start: int) -> None:
    source = open_source(save(tmp_path / "a.npy", pixels()))
    (piece,) = source.pieces()

    found = list(source.tiles(piece, start))

    assert (piece.name, piece.count) == ("a.npy", 300)
    assert [tile.id for tile in found] == [str(k) for k in range(start, 300)]
    for tile, expected in zip(found, pixels()[start:], strict=True):
        np.testing.assert_array_equal(decode(tile), expected)


def test_several_arrays_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(tmp_path / f"{name}.npy", pixels(2))
    source = open_source(tmp_path)

    ids = [tile.id for piece in source.pieces() for tile in source.tiles(piece)]

    assert ids == ["a.npy/0", "a.npy/1", "b.npy/0", "b.npy/1"]


def test_columns_first_in_memory_are_the_same_pixels(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "a.npy", np.asfortranarray(pixels(5))))

    for tile, expected in zip(source.tiles(source.pieces()[0]), pixels(5), strict=True):
        np.testing.assert_array_equal(decode(tile), expected)


@pytest.mark.parametrize(
    "array",
    [
        pixels().astype(np.float32),
        pixels().transpose(0, 3, 1, 2),
        pixels()[..., 0],
        pixels()[0],
        pixels()[:0],
        pixels().astype(np.uint16),
    ],
)
def test_another_array_is_refused_with_its_shape_and_type(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        open_source(save(tmp_path / "a.npy", array))

    assert f"a.npy is {array.dtype} {list(array.shape)}; understood are pixels" in str(caught.value)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npy", pixels()).read_bytes()
    np.savez(tmp_path / "z.npz", pixels())
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    objects = (tmp_path / "o.npy").read_bytes()
    (tmp_path / "o.npy").unlink()

    for content in (b"", b"text", whole[: len(whole) // 2], (tmp_path / "z.npz").read_bytes(), objects):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npy is no readable \.npy array: "):
            open_source(tmp_path)


def test_an_array_that_changed_meanwhile_is_told(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "a.npy", pixels()))
    save(tmp_path / "a.npy", pixels(299))

    with pytest.raises(InputError, match="has changed since it was listed"):
        list(source.tiles(source.pieces()[0]))


def test_the_stamp_changes_with_the_shape(tmp_path: Path) -> None:
    sources = [open_source(save(tmp_path / "a.npy", pixels(*shape))) for shape in ((3, 4), (4, 4), (3, 5))]

    assert [source.pieces()[0].stamp for source in sources] == ["[3, 4, 4, 3]", "[4, 4, 4, 3]", "[3, 5, 5, 3]"]
    assert len({source.fingerprint() for source in sources}) == 1


def test_a_damaged_array_is_a_tile_and_the_others_are_read(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", pixels(2))
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    source = open_source(tmp_path)

    found = [tile for piece in source.pieces() for tile in source.tiles(piece)]

    assert [tile.id for tile in found] == ["a.npy/0", "a.npy/1", "b.npy"]
    assert str(found[2].image).startswith("is no readable .npy array: ")


def test_memory_stays_flat_for_an_array_larger_than_it(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (4000, 224, 224, 3))  # 600 MB
    array[::7, 0, 0] = 1
    array.flush()
    del array
    source = open_source(tmp_path / "a.npy")
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss

    most = max(process.memory_info().rss for tile in source.tiles(source.pieces()[0]) if tile.id.endswith("99"))

    assert most - before < 120e6
