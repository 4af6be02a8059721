"""Preprocessing: numpy and Pillow compute what the publishers' torchvision transforms compute, to the last bit."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from runtime import load_model
from runtime.errors import InputError
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from runtime.preprocess import normalise, preprocess

FACTS = Preprocessing(size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
GREY = Preprocessing(size=32, channels=1, mean=(0.4,), std=(0.3,))
MODES = {
    "nearest": transforms.InterpolationMode.NEAREST,
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


def pixels(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def picture(height: int = 40, width: int = 50) -> Image.Image:
    return Image.fromarray(pixels(height, width, 3))


def torchvision(image: Image.Image, facts: Preprocessing) -> np.ndarray:
    """What a model card tells to do."""
    steps = [
        transforms.Resize(facts.resize or facts.size, interpolation=MODES[facts.interpolation]),
        transforms.CenterCrop(facts.size),
        transforms.ToTensor(),
        transforms.Normalize(facts.mean, facts.std),
    ]
    return transforms.Compose(steps)(image).numpy()[None]


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("resize", [None, 36, 37])
@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 32), (36, 36), (40, 50), (50, 40), (33, 47), (47, 33), (7, 5), (20, 100), (100, 21), (1, 3), (201, 203)],
)
def test_it_equals_torchvision(height: int, width: int, resize: int | None, interpolation: str) -> None:
    facts = Preprocessing(size=32, resize=resize, interpolation=interpolation, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    image = picture(height, width)

    result = preprocess(image, facts)

    np.testing.assert_array_equal(result, torchvision(image, facts))
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_other_modes_become_rgb_first(mode: str) -> None:
    image = picture().convert(mode)

    np.testing.assert_array_equal(preprocess(image, FACTS), torchvision(image.convert("RGB"), FACTS))


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_an_array_means_the_picture_it_holds(channels: tuple[int, ...]) -> None:
    array = pixels(40, 50, *channels)
    image = Image.fromarray(array.squeeze())

    np.testing.assert_array_equal(preprocess(array, FACTS), torchvision(image.convert("RGB"), FACTS))


def test_a_grey_backbone_gets_one_channel_of_luminance() -> None:
    result = preprocess(picture(), GREY)

    assert result.shape == (1, 1, 32, 32)
    np.testing.assert_array_equal(result, torchvision(picture().convert("L"), GREY))


def test_any_collection_of_images_is_a_batch_in_its_order() -> None:
    arrays = np.stack([pixels(40, 50, 3), pixels(40, 50, 3)[::-1], pixels(40, 50, 3)[:, ::-1]])
    pictures = [Image.fromarray(a) for a in arrays]
    expected = np.concatenate([torchvision(p, FACTS) for p in pictures])

    for batch in (arrays, list(arrays), pictures, tuple(pictures), iter(pictures), [pictures[0], *arrays[1:]]):
        np.testing.assert_array_equal(preprocess(batch, FACTS), expected)


def test_images_of_different_sizes_make_one_batch() -> None:
    result = preprocess([picture(40, 50), picture(32, 32), picture(7, 90)], FACTS)

    assert result.shape == (3, 3, 32, 32)


def test_the_input_is_left_as_it_was() -> None:
    array = pixels(40, 50, 3)

    preprocess(array, FACTS)

    np.testing.assert_array_equal(array, pixels(40, 50, 3))


@pytest.mark.parametrize("resize", [None, 36])
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (64, 64)])
def test_another_size_keeps_the_ratio_of_resize_to_crop(size: tuple[int, int], resize: int | None) -> None:
    declared = Preprocessing(size=32, resize=resize, mean=HALF, std=HALF)
    scaled = Preprocessing(size=size[0], resize=resize and resize * size[0] // 32, mean=HALF, std=HALF)

    np.testing.assert_array_equal(preprocess(picture(), declared, size), torchvision(picture(), scaled))


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_a_rectangle_is_cut_from_an_image_whose_shorter_side_covers_it(size: tuple[int, int]) -> None:
    square = Preprocessing(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    rows, columns = (slice((64 - side) // 2, (64 + side) // 2) for side in size)

    result = preprocess(picture(), FACTS, size)

    assert result.shape == (1, 3, *size)
    np.testing.assert_array_equal(result, torchvision(picture(), square)[:, :, rows, columns])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "NoneType"),
        (3, "int"),
        ("tile.png", "str"),
        (["tile.png"], "str"),
        (b"bytes", "bytes"),
        ([], "no image"),
        (np.zeros((0, 40, 50, 3), np.uint8), "no image"),
        (np.zeros((40, 50, 3), np.float32), "float32 array of shape (40, 50, 3)"),
        (np.zeros((40, 50, 3), np.uint16), "uint16 array"),
        (np.zeros((40, 50, 2), np.uint8), "uint8 array of shape (40, 50, 2)"),
        (np.zeros((3, 40, 50), np.uint8), "uint8 array of shape (3, 40, 50)"),
        (np.zeros(40, np.uint8), "uint8 array of shape (40,)"),
        (np.zeros((2, 2, 40, 50, 3), np.uint8), "uint8 array of shape (2, 40, 50, 3)"),
        (np.zeros((0, 50, 3), np.uint8), " 0 pixels high"),
        (Image.new("RGB", (0, 5)), " 0 pixels wide"),
        (Image.new("I;16", (40, 50)), "'I;16'"),
        (Image.new("I", (40, 50)), "'I'"),
        (Image.new("F", (40, 50)), "'F'"),
    ],
)
def test_what_is_no_8_bit_picture_is_refused_in_words(images: object, said: str) -> None:
    with pytest.raises(InputError, match=r"^preprocess\(\)") as error:
        preprocess(images, FACTS)

    assert said in str(error.value)


@pytest.mark.parametrize("facts", [Preprocessing(), Preprocessing(mean=HALF), Preprocessing(std=HALF)])
def test_a_backbone_without_mean_or_std_says_so(facts: Preprocessing) -> None:
    with pytest.raises(InputError, match="declares no mean and std"):
        preprocess(picture(), facts)


@pytest.mark.parametrize(
    ("options", "size"), [({}, (32, 32)), ({"image_size": (48, 40)}, (48, 40)), ({"image_size": "dynamic"}, (32, 32))]
)
def test_a_loaded_backbone_prepares_images_for_itself(options: dict, size: tuple[int, int]) -> None:
    model = load_model("test/tiny_vit", backend="eager", weights="random", **options)
    facts = Preprocessing(size=32, mean=HALF, std=HALF)

    prepared = model.preprocess([picture(), picture(90, 70)])

    np.testing.assert_array_equal(prepared, preprocess([picture(), picture(90, 70)], facts, size))
    assert model(prepared).shape == (2, 48)


def test_normalising_in_place_gives_the_formula_to_the_bit() -> None:
    facts = Preprocessing(size=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    mean, std = np.float32(facts.mean), np.float32(facts.std)

    expected = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    made = normalise(images, facts)

    np.testing.assert_array_equal(made, expected)
    assert made.flags.c_contiguous
