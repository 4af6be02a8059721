"""Calibration images: a folder of one's own, or the bundled tissue image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporters.int8.calibration import bundled_calibration, calibration_id, load_calibration
from runtime.errors import InputError
from runtime.facts import HALF, Preprocessing
from runtime.preprocess import preprocess

FACTS = Preprocessing(size=32, mean=HALF, std=HALF)


def save(folder: Path, count: int) -> list[Path]:
    """Save plain images, the k-th of grey value k."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.new("RGB", (40, 50), (index, index, index)).save(path)
    return paths


def greys(batches: list[np.ndarray]) -> list[int]:
    return [round((image.mean() + 1) / 2 * 255) for batch in batches for image in batch]


def test_a_folder_gives_batches_as_the_runtime_preprocesses_them(tmp_path: Path) -> None:
    paths = save(tmp_path, 11)

    batches = load_calibration(tmp_path, FACTS, (32, 32))

    assert [batch.shape for batch in batches] == [(8, 3, 32, 32), (3, 3, 32, 32)]
    np.testing.assert_array_equal(np.concatenate(batches), preprocess([Image.open(p) for p in paths], FACTS, (32, 32)))


def test_of_many_images_the_same_ones_are_taken_each_time_from_all_over_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 9)
    save(tmp_path / "more", 21)

    taken = greys(load_calibration(tmp_path, FACTS, (32, 32), 10))

    assert taken == greys(load_calibration(tmp_path, FACTS, (32, 32), 10))
    assert len(taken) == 10
    assert taken[0] == 0
    assert taken[-1] == 20


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist\. Name a folder of at least 8"):
        load_calibration(tmp_path / "nowhere", FACTS, (32, 32))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 1)
    with pytest.raises(InputError, match=r"000\.png is not a folder"):
        load_calibration(file, FACTS, (32, 32))


def test_a_folder_without_images_says_what_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"holds no image \(\.png, .*at least 8 are needed"):
        load_calibration(tmp_path, FACTS, (32, 32))


@pytest.mark.parametrize(("count", "held"), [(1, "holds 1 image "), (7, "holds 7 images ")])
def test_too_few_images_are_refused(tmp_path: Path, count: int, held: str) -> None:
    save(tmp_path, count)
    with pytest.raises(InputError, match=held):
        load_calibration(tmp_path, FACTS, (32, 32))


def test_asking_for_too_few_images_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 9)
    with pytest.raises(InputError, match="with 3 images: static int8 needs at least 8"):
        load_calibration(tmp_path, FACTS, (32, 32), 3)


@pytest.mark.parametrize("damage", ["no image", "cut", "16 bits"])
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    bad = save(tmp_path, 9)[4]
    if damage == "no image":
        bad.write_text("not a picture")
    elif damage == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(bad)
        bad.write_bytes(bad.read_bytes()[:4000])
    else:
        Image.fromarray(np.full((40, 40), 3000, np.uint16)).save(bad)
    with pytest.raises(InputError, match=r"004\.png cannot be used: .*\. Remove it"):
        load_calibration(tmp_path, FACTS, (32, 32))


def test_volumes_and_backbones_without_normalisation_cannot_be_calibrated_on_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes volumes"):
        load_calibration(tmp_path, Preprocessing(size=32, mean=HALF, std=HALF, spatial_dims=3), (32, 32))
    with pytest.raises(InputError, match="declares no mean and std"):
        load_calibration(tmp_path, Preprocessing(size=32), (32, 32))


@pytest.mark.parametrize("facts", [FACTS, Preprocessing(size=32), Preprocessing(size=32, channels=1)])
def test_the_bundled_images_are_model_input_of_any_backbone_for_pictures(facts: Preprocessing) -> None:
    batches = bundled_calibration(facts, (32, 48))

    images = np.concatenate(batches)
    assert images.shape == (18, facts.channels, 32, 48)
    assert images.dtype == np.float32
    assert len(np.unique(images.reshape(18, -1), axis=0)) == 18
    np.testing.assert_array_equal(images, np.concatenate(bundled_calibration(facts, (32, 48))))


def test_there_are_no_bundled_volumes() -> None:
    with pytest.raises(InputError, match="takes volumes"):
        bundled_calibration(Preprocessing(size=32, spatial_dims=3), (32, 32))


def test_a_calibration_is_known_by_the_images_it_takes(tmp_path: Path) -> None:
    save(tmp_path / "one", 9)
    save(tmp_path / "same", 9)
    save(tmp_path / "more", 10)
    one = calibration_id(str(tmp_path / "one"))

    assert one == calibration_id(str(tmp_path / "same"))
    assert len({one, calibration_id(str(tmp_path / "more")), calibration_id("none"), calibration_id(None)}) == 4
    Image.new("RGB", (40, 50), (200, 0, 0)).save(tmp_path / "one" / "003.png")
    assert calibration_id(str(tmp_path / "one")) != one
