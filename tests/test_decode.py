"""Image files of every kind that people have, and that nobody wants: pixels, or a reason."""

import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from runtime.embedding import decode as decoding
from runtime.embedding.decode import LargeImage, decode
from runtime.embedding.tile import Tile
from runtime.errors import InputError, UnreadableImageError


def picture(height: int = 40, width: int = 50) -> Image.Image:
    """A gradient and a bright square: unlike itself in every orientation, and kept by JPEG."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    pixels[:10, :10] = 250
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with what Pillow does not write: 16 bits per channel, sizes without pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(content: bytes) -> np.ndarray:
    result = decode(Tile("it", content))
    assert result.dtype == np.uint8
    assert result.ndim == 3
    assert result.shape[2] == 3
    return result


def reason(content: bytes | Path | np.ndarray) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode(Tile("it", content))
    return str(caught.value)


def ramp16() -> np.ndarray:
    """All of 16 bits, [64, 64]: values that wrap or clip where 8 bits are taken for granted."""
    return np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_lossless_files_give_the_pixels_that_were_saved(form: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(pixels(encoded(picture(), form, **options)), np.asarray(picture()))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}])
def test_a_jpeg_gives_what_pillow_decodes(options: dict[str, object]) -> None:
    content = encoded(picture(), "JPEG", **options)

    np.testing.assert_array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))
    assert np.abs(pixels(content).astype(int) - np.asarray(picture())).mean() < 12


def test_a_path_gives_what_its_bytes_give_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(picture(), "PNG"))

    np.testing.assert_array_equal(decode(Tile("it", path)), np.asarray(picture()))


def test_pixels_are_passed_on_as_they_are() -> None:
    array = np.asarray(picture())

    assert decode(Tile("it", array)) is array


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_of_anything_else_is_unreadable(array: np.ndarray) -> None:
    assert f"{array.dtype} {list(array.shape)} is not pixels" in reason(array)


def test_what_a_source_could_not_read_is_raised_with_its_reason() -> None:
    error = UnreadableImageError("its row holds no image (null)")

    with pytest.raises(UnreadableImageError) as caught:
        decode(Tile("it", error))
    assert caught.value is error


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_black_and_palette_become_rgb(mode: str) -> None:
    image = picture().convert(mode)

    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str, form: str) -> None:
    image = picture().convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 25, 40))
    alpha.paste(51, (0, 0, 25, 10))  # a fifth
    image.putalpha(alpha)

    result = pixels(encoded(image, form))

    opaque = np.asarray(picture().convert(mode).convert("RGB"))
    np.testing.assert_array_equal(result[:, 25:], opaque[:, 25:])
    assert (result[10:, :25] == 255).all()
    np.testing.assert_allclose(result[:10, :25], 0.8 * 255 + 0.2 * opaque[:10, :25], atol=1)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_is_white_as_well(mode: str) -> None:
    image = Image.new("L", (8, 8), 100)
    image.paste(7, (0, 0, 4, 8))
    image = image.convert(mode)
    transparent = {"P": 7, "RGB": (7, 7, 7), "L": 7}[mode]

    result = pixels(encoded(image, "PNG", transparency=transparent))

    assert (result[:, :4] == 255).all()
    assert (result[:, 4:] == 100).all()


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bit_grey_tiff_is_scaled_not_wrapped(byteorder: str) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, ramp16(), byteorder=byteorder)

    np.testing.assert_array_equal(pixels(buffer.getvalue())[..., 1], np.round(ramp16() / 257))


def test_16_bit_grey_png_is_scaled_not_wrapped() -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ramp16()), "PNG"))[..., 0], np.round(ramp16() / 257))


def test_16_bit_colour_is_scaled_within_one_level() -> None:
    colour = np.stack([ramp16(), ramp16()[::-1], ramp16().T], axis=-1)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, colour, photometric="rgb")
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)

    for content in (tiff.getvalue(), png(64, 64, 16, 2, rows)):
        assert np.abs(pixels(content) - colour / 257).max() <= 1


def test_a_16_bit_tiff_whose_zero_is_white_is_inverted_as_those_of_8_bits_are() -> None:
    deep, flat = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(deep, ramp16(), photometric="miniswhite")
    tifffile.imwrite(flat, np.round(ramp16() / 257).astype(np.uint8), photometric="miniswhite")

    assert (pixels(deep.getvalue())[0, 0] == 255).all()
    assert np.abs(pixels(deep.getvalue()).astype(int) - pixels(flat.getvalue())).max() <= 1


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_planes_are_read_where_pillow_reads_them_right(compression: str | None) -> None:
    planes = np.stack([ramp16(), ramp16()[::-1], ramp16().T])
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate", compression=compression)

    if compression:
        assert np.abs(pixels(buffer.getvalue()) - planes.transpose(1, 2, 0) / 257).max() <= 1
    else:  # Pillow takes the first half of each plane for all of it
        assert reason(buffer.getvalue()).startswith("16 bits in separate planes")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_values_with_signs_are_refused(dtype: type) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((8, 8), dtype))

    assert reason(buffer.getvalue()).startswith("its values have signs")


@pytest.mark.parametrize(("dtype", "named"), [(np.uint32, "32-bit"), (np.float32, "floating")])
def test_values_without_a_known_white_are_refused(dtype: type, named: str) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, ramp16().astype(dtype))

    assert f"its {named}" in reason(buffer.getvalue())


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    image = picture().convert("CMYK")

    difference = np.abs(pixels(encoded(image, form)).astype(int) - np.asarray(picture()))

    assert difference.mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_an_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), form, exif=exif)

    with Image.open(io.BytesIO(encoded(picture(), "PNG", exif=exif))) as saved:
        upright = np.asarray(ImageOps.exif_transpose(saved))

    np.testing.assert_array_equal(pixels(content), upright)
    assert pixels(content).shape == ((50, 40, 3) if orientation >= 5 else (40, 50, 3))


def test_damaged_exif_is_no_damage_to_the_picture() -> None:
    content = encoded(picture(), "PNG", exif=b"Exif\0\0no tiff header at all")

    np.testing.assert_array_equal(pixels(content), np.asarray(picture()))


def test_the_first_page_of_several_is_taken() -> None:
    content = encoded(picture(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])

    np.testing.assert_array_equal(pixels(content), np.asarray(picture()))


def test_an_empty_file_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()

    assert reason(path) == "it is empty (0 bytes)"
    assert reason(b"") == "it is empty (0 bytes)"


def test_text_called_png_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("These are notes.")

    assert reason(path) == "it is no JPEG, PNG, TIFF, WEBP or BMP image: it begins with b'These are no'"


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    assert reason(tmp_path / "gone.png") == f"{tmp_path / 'gone.png'} cannot be opened: No such file or directory"
    assert "cannot be opened: Is a directory" in reason(tmp_path)


FORMS = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
    ("BMP", {}),
]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("form", "options"), FORMS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns before it fails
def test_a_file_cut_short_is_unreadable(form: str, options: dict[str, object], kept: float) -> None:
    content = encoded(picture(200, 200), form, **options)

    assert reason(content[: int(len(content) * kept)]).startswith(("it is damaged", "it begins as", "it is no"))


@pytest.mark.parametrize(("form", "options"), FORMS)
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_pixels_or_a_reason_and_nothing_else(form: str, options: dict[str, object]) -> None:
    content = encoded(picture(), form, **options)
    random = np.random.default_rng(0)
    readable = 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 5):
            damaged[place] = random.integers(0, 256)
        try:
            readable += pixels(bytes(damaged)).size > 0
        except UnreadableImageError:
            continue
    assert readable < 200


def test_a_checksum_that_does_not_match_is_damage() -> None:
    content = bytearray(encoded(picture(), "PNG"))
    content[content.index(b"IDAT") + 20] ^= 0xFF

    assert reason(bytes(content)).startswith("it is damaged: ")


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of the smaller
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    text = reason(png(side, side, 8, 0, b""))

    assert text.startswith("it is too large (")
    assert "89478485 pixels" in text
    assert "microns per pixel" in text


@pytest.mark.filterwarnings("ignore")
def test_the_limit_is_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(picture(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1999)
    assert "too large" in reason(content)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert pixels(content).shape == (40, 50, 3)


def test_a_tiff_that_pillow_does_not_read_is_not_called_text() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), np.float16))

    assert "of a variant that Pillow does not read" in reason(buffer.getvalue())


def test_a_format_that_runs_programs_is_not_opened() -> None:
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n").startswith("it is no JPEG")


def test_the_error_is_an_input_error_with_its_cause() -> None:
    with pytest.raises(InputError) as caught:
        decode(Tile("it", b"text"))

    assert caught.value.__cause__ is not None


def test_other_threads_run_while_one_decodes() -> None:
    """Were the GIL held, the ticking thread would hardly tick during one long decoding."""
    content = encoded(picture(6000, 6000), "JPEG")
    done, ticks = threading.Event(), 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(decode, Tile("it", content))
        future.add_done_callback(lambda _: done.set())
        while not done.wait(0.001):
            ticks += 1
    assert future.result().shape == (6000, 6000, 3)
    assert ticks > 20


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "I;16", "CMYK", "transparent P", "inverted"])
def test_a_large_image_is_converted_in_bands_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "inverted":
        file = io.BytesIO()
        tifffile.imwrite(file, ramp16(), photometric="miniswhite")
        content = file.getvalue()
    elif mode == "I;16":
        content = encoded(Image.fromarray(ramp16()), "PNG")
    elif mode == "CMYK":
        content = encoded(picture().convert(mode), "TIFF")
    else:
        options = {"transparency": 5} if mode.startswith("transparent") else {}
        content = encoded(picture().convert(mode.split()[-1]), "PNG", **options)
    whole = pixels(content)
    monkeypatch.setattr(decoding, "_BAND", 7 * whole.shape[1])  # the last band is a shorter one

    np.testing.assert_array_equal(pixels(content), whole)


def test_more_pixels_than_there_is_room_for_are_not_decoded() -> None:
    content = png(100, 100, 8, 2, b"no rows at all")

    for image in (content, np.zeros((100, 100, 3), np.uint8)):
        with pytest.raises(LargeImage):
            decode(Tile("it", image), 9_999)
    assert decode(Tile("it", encoded(picture(), "PNG")), 40 * 50).shape == (40, 50, 3)
