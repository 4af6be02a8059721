"""Whole slides: where they are cut, at which level they are read, what is tissue, and what can be wrong."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from embedding_inputs import table_of, tiny
from PIL import Image
from slide_files import GLASS, glass, with_tissue, write_slide
from terminal import run

import runtime
from runtime.embedding import command
from runtime.embedding.decode import decode
from runtime.embedding.sources import TILE_SIZE, Source, open_source
from runtime.embedding.sources.grid import Cut, Grid, plan_grid
from runtime.embedding.sources.tissue import THRESHOLDS, threshold
from runtime.embedding.tile import Tile
from runtime.errors import InputError, UnreadableImageError

HALF = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}
LEVELS = (1.0, 4.0, 16.003)


def tiles(source: Source) -> list[Tile]:
    return [tile for piece in source.pieces() for tile in source.tiles(piece)]


def corners(source: Source) -> list[tuple[int, int]]:
    return [(int(t.coordinates["x"]), int(t.coordinates["y"])) for t in tiles(source) if t.coordinates]


def refusal(path: Path, **options: float) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "level", "pixels", "step"),
    [
        (0.5, 0, 100, 100.0),
        (0.46, 0, 92, 92.0),  # as a scanner called 20x is, within a tenth: a little enlarged
        (1.0, 0, 200, 200.0),
        (1.9, 0, 380, 380.0),
        (2.0, 1, 100, 400.0),
        (7.9, 1, 395, 1580.0),
        (8.0, 2, 100, 1600.0),
        (16.0, 2, 200, 3200.0),
    ],
)
def test_the_lowest_resolution_is_read_that_is_not_below_what_is_wanted(
    wanted: float, level: int, pixels: int, step: float
) -> None:
    grid = plan_grid(Cut(100, wanted), HALF, (10_000, 8_000), LEVELS)

    assert (grid.level, grid.pixels) == (level, pixels)
    assert grid.step == pytest.approx(step)
    assert (grid.origin, grid.extent) == ((0, 0), (10_000, 8_000))


@pytest.mark.parametrize(
    ("properties", "slide_mpp", "mpp"),
    [
        (HALF, None, 0.5),
        ({"openslide.mpp-x": "0.4", "openslide.mpp-y": "0.6"}, None, 0.5),
        (HALF, 0.25, 0.5),  # what the slide says goes before
        ({}, 0.25, 0.25),
        ({"openslide.mpp-x": "352.7", "openslide.mpp-y": "352.7"}, 0.25, 0.25),
        ({"openslide.mpp-x": "nan", "openslide.mpp-y": "0.5"}, 0.25, 0.25),
        ({"openslide.mpp-x": "0.5"}, 0.25, 0.25),
        ({"openslide.mpp-x": "0,5", "openslide.mpp-y": "0,5"}, 0.25, 0.25),
    ],
)
def test_the_resolution_is_what_the_slide_says_or_else_what_is_given(
    properties: dict[str, str], slide_mpp: float | None, mpp: float
) -> None:
    grid = plan_grid(Cut(100, 1.0, slide_mpp), properties, (10_000, 8_000), LEVELS)

    assert grid.step == pytest.approx(100 / mpp)


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ({}, "it does not say how many microns a pixel is: give slide_mpp"),
        (
            {"openslide.mpp-x": "352.7", "openslide.mpp-y": "352.7"},
            "(openslide.mpp-x=352.7 and openslide.mpp-y=352.7 can",
        ),
        ({"openslide.mpp-x": "2.3", "openslide.mpp-y": "2.3"}, "2.3 microns per pixel, too coarse for tiles of 2: ask"),
    ],
)
def test_a_resolution_that_cannot_be_had_is_told(properties: dict[str, str], told: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_grid(Cut(100, 2.0), properties, (10_000, 8_000), LEVELS)
    assert told in str(caught.value)


def test_only_what_was_scanned_is_cut() -> None:
    bounds = {"x": "300", "y": "700", "width": "1000", "height": "2000"}
    grid = plan_grid(
        Cut(100, 0.5), HALF | {f"openslide.bounds-{k}": v for k, v in bounds.items()}, (9000, 9000), LEVELS
    )

    assert (grid.origin, grid.extent, grid.shape) == ((300, 700), (1000, 2000), (20, 10))
    assert grid.corner(2, 3) == (600, 900)


def test_steps_that_are_no_whole_number_do_not_add_up_their_rounding() -> None:
    grid = Grid(step=33.4, level=0, pixels=33, origin=(0, 0), extent=(3340, 334))

    assert grid.shape == (10, 100)
    assert grid.corner(9, 99) == (3307, 301)


def colours(**shares: int) -> np.ndarray:
    return np.concatenate([np.full(count, int(value[1:]), np.uint8) for value, count in shares.items()])


@pytest.mark.parametrize(
    ("colour", "low", "high"),
    [
        (colours(c2=500, c60=500), *THRESHOLDS),
        (colours(c2=990, c14=10), THRESHOLDS[0], 13),
        (colours(c1=500, c2=500), THRESHOLDS[0], THRESHOLDS[0]),  # glass alone: all of it stays glass
        (colours(c60=500, c120=500), THRESHOLDS[1], THRESHOLDS[1]),  # tissue alone: all of it stays tissue
        (colours(c0=1000), THRESHOLDS[0], THRESHOLDS[0]),
        (colours(c90=1000), *THRESHOLDS),
    ],
)
def test_the_threshold_lies_between_glass_and_tissue(colour: np.ndarray, low: int, high: int) -> None:
    assert low <= threshold(colour) <= high


def test_the_threshold_is_otsus() -> None:
    from skimage.filters import threshold_otsu

    random = np.random.default_rng(0)
    colour = np.concatenate([random.normal(5, 2, 5000), random.normal(25, 4, 3000)]).clip(0, 255).astype(np.uint8)

    assert THRESHOLDS[0] < threshold_otsu(colour) < THRESHOLDS[1]
    assert abs(threshold(colour) - threshold_otsu(colour)) <= 1


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """1024 x 768 pixels of 0.5 microns with tissue at x 256 to 640, y 128 to 512."""
    return write_slide(tmp_path / "slides" / "s.tif", with_tissue(glass(), 256, 128, 640, 512))


def pixels_of(slide: Path) -> np.ndarray:
    return np.asarray(tifffile.imread(slide, key=0))


def test_tiles_are_the_slides_pixels_with_background_left_out(slide: Path) -> None:
    found = tiles(open_source(slide, tile_size=128, mpp=0.5))

    assert [tile.id for tile in found] == [f"s.tif/{x}_{y}" for y in (128, 256, 384) for x in (256, 384, 512)]
    for tile in found:
        assert tile.coordinates is not None
        x, y = int(tile.coordinates["x"]), int(tile.coordinates["y"])
        assert tile.coordinates == {"x": x, "y": y, "size": 128, "mpp": 0.5}
        np.testing.assert_array_equal(decode(tile), pixels_of(slide)[y : y + 128, x : x + 128])


def test_a_coarser_tile_is_read_from_a_further_level(slide: Path) -> None:
    found = tiles(open_source(slide, tile_size=64, mpp=1.0))

    assert found[0].coordinates == {"x": 256, "y": 128, "size": 128, "mpp": 1.0}
    assert len(found) == 9
    for tile in found:
        x, y = (int(tile.coordinates[axis]) for axis in "xy") if tile.coordinates else (0, 0)
        expected = pixels_of(slide)[y : y + 128, x : x + 128].reshape(64, 2, 64, 2, 3).mean((1, 3)).round()
        np.testing.assert_array_equal(decode(tile), expected)


def test_between_two_levels_the_finer_is_made_smaller(slide: Path) -> None:
    found = tiles(open_source(slide, tile_size=64, mpp=0.75))

    assert {tile.coordinates["size"] for tile in found if tile.coordinates} == {96}
    for tile in found:
        x, y = (int(tile.coordinates[axis]) for axis in "xy") if tile.coordinates else (0, 0)
        region = Image.fromarray(pixels_of(slide)[y : y + 96, x : x + 96])
        np.testing.assert_array_equal(decode(tile), np.asarray(region.resize((64, 64), Image.Resampling.BICUBIC)))


def test_tiles_that_touch_tissue_are_kept_and_all_of_it_is_covered(slide: Path) -> None:
    covered = np.zeros((768, 1024), bool)
    for x, y in corners(open_source(slide, tile_size=100, mpp=0.5)):
        covered[y : y + 100, x : x + 100] = True

    # What a tile holds less than a tenth of is not worth a tile.
    tissue = np.zeros_like(covered)
    tissue[128:512, 256:640] = True
    assert (covered & tissue).sum() / tissue.sum() > 0.97
    assert not covered[:100].any()
    assert not covered[:, 700:].any()


def test_a_slide_without_tissue_has_no_tile_and_one_of_tissue_has_all(tmp_path: Path) -> None:
    write_slide(tmp_path / "glass.tif", glass())
    write_slide(tmp_path / "full.tif", with_tissue(glass(), 0, 0, 1024, 768))

    assert corners(open_source(tmp_path / "glass.tif", tile_size=128, mpp=0.5)) == []
    assert len(corners(open_source(tmp_path / "full.tif", tile_size=128, mpp=0.5))) == 6 * 8


def test_a_slide_without_tissue_takes_no_column_from_the_dataset(built: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tif", glass())
    write_slide(tmp_path / "in" / "b.tif", with_tissue(glass(), 0, 0, 1024, 768))

    with tiny(built) as model:
        runtime.embed(model, tmp_path / "in", tmp_path / "out", mpp=0.5, tile_size=128)

    rows = table_of(tmp_path / "out")  # its schema is that of the first file
    assert [str(rows.schema.field(name).type) for name in ("x", "y", "size", "mpp")] == ["int64"] * 3 + ["double"]
    assert rows["x"].to_pylist()[:3] == [0, 128, 256]


@pytest.mark.parametrize("levels", [(1,), (1, 4)])
def test_the_mask_is_the_same_whatever_levels_a_slide_has(tmp_path: Path, slide: Path, levels: tuple[int, ...]) -> None:
    other = write_slide(tmp_path / "other.tif", pixels_of(slide), levels=levels)

    options = {"tile_size": 32, "mpp": 0.5}
    assert corners(open_source(other, **options)) == corners(open_source(slide, **options))


def test_the_mask_of_a_slide_with_one_level_is_read_block_by_block(
    slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.embedding.sources import tissue

    whole = corners(open_source(slide, tile_size=32, mpp=0.5))
    monkeypatch.setattr(tissue, "_BLOCK", 100)

    assert corners(open_source(slide, tile_size=32, mpp=0.5)) == whole


@pytest.mark.parametrize("start", [0, 1, 8, 9, 10])
def test_reading_starts_at_any_tile_and_workers_can_do_it(slide: Path, start: int) -> None:
    source = open_source(slide, tile_size=128, mpp=0.5)
    every = [tile.id for tile in tiles(source)]
    again = pickle.loads(pickle.dumps(source))

    (piece,) = again.pieces()

    assert (piece.name, piece.count) == ("s.tif", None)
    assert [tile.id for tile in again.tiles(piece, start)] == every[start:]


def test_a_reader_that_stops_early_leaves_no_thread(slide: Path) -> None:
    def read_one() -> int:
        source = open_source(slide, tile_size=16, mpp=0.5)
        reading = source.tiles(source.pieces()[0])
        assert next(reading).id == "s.tif/256_128"
        reading.close()  # type: ignore[attr-defined]
        return psutil.Process(os.getpid()).num_threads()

    counts = [read_one() for _ in range(6)]

    assert counts[-1] - counts[0] < 5, "one more each time"  # libraries start a thread of their own now and then


def test_what_an_aperio_slide_says_is_used(tmp_path: Path) -> None:
    path = write_slide(
        tmp_path / "a.svs",
        with_tissue(glass(), 0, 0, 1024, 768),
        mpp=None,
        notes="Aperio Image Library v12.0.16\r\n1024x768 |AppMag = 40|MPP = 0.2500",
    )

    found = tiles(open_source(path, tile_size=128, mpp=0.5))

    assert {tile.coordinates["size"] for tile in found if tile.coordinates} == {256}
    assert len(found) == 3 * 4


def test_a_slide_that_does_not_say_needs_to_be_told(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", with_tissue(glass(), 0, 0, 1024, 768), mpp=None)

    told = refusal(path, mpp=0.5)
    assert told == (
        f"1 of 1 slides in {tmp_path} cannot be cut. s.tif: it does not say how many microns a pixel is: "
        "give slide_mpp (--slide-mpp)."
    )
    assert len(tiles(open_source(path, tile_size=128, mpp=0.5, slide_mpp=0.25))) == 3 * 4


def test_details_that_a_slide_has_not_are_not_invented(slide: Path) -> None:
    assert "s.tif: it has 0.5 microns per pixel, too coarse for tiles of 0.25: ask for mpp=0.5." in refusal(
        slide, mpp=0.25
    )


def test_what_is_no_slide_is_a_tile_and_the_others_are_read(slide: Path) -> None:
    (slide.parent / "empty.svs").touch()
    Image.new("RGB", (9, 9)).save(slide.parent / "plain.tif")

    found = tiles(open_source(slide.parent, tile_size=128, mpp=0.5))

    assert [tile.id for tile in found if isinstance(tile.image, UnreadableImageError)] == ["empty.svs", "plain.tif"]
    assert len(found) == 9 + 2
    assert str(found[0].image).startswith("is no slide that OpenSlide reads: ")
    assert found[0].coordinates is not None  # or a batch that begins with it would have none
    slide.unlink()
    assert f"{slide.parent}/empty.svs is no slide that OpenSlide reads: " in refusal(slide.parent, mpp=0.5)


def test_a_slide_that_cannot_be_opened_is_not_damaged(slide: Path) -> None:
    source = open_source(slide, tile_size=128, mpp=0.5)
    slide.unlink()

    with pytest.raises(InputError, match=r"s\.tif cannot be opened: No such file .* with --resume"):
        tiles(source)


def test_the_fingerprint_changes_with_slides_and_how_they_are_cut(slide: Path) -> None:
    options: list[dict[str, float]] = [{}, {"mpp": 0.6}, {"tile_size": 100}, {"slide_mpp": 0.4}]
    seen = {open_source(slide, **{"mpp": 0.5, **asked}).fingerprint() for asked in options}
    write_slide(slide.parent / "t.tif", glass())
    seen.add(open_source(slide.parent, mpp=0.5).fingerprint())

    assert len(seen) == 5


def test_the_size_of_a_tile_is_one_whether_it_is_said_or_not(slide: Path) -> None:
    sources = [open_source(slide, mpp=0.5), open_source(slide, mpp=0.5, tile_size=TILE_SIZE)]

    assert len({source.fingerprint() for source in sources}) == 1
    assert f"default: {TILE_SIZE})" in run(command.main, "--help").out


def spoil(slide: Path, place: tuple[int, int]) -> None:
    """Overwrite the block of level 0 that holds the pixel at `place` (x, y)."""
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        number = place[1] // 128 * -(-page.imagewidth // 128) + place[0] // 128
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with slide.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(">I", 0xDEADBEEF) * (count // 4))


def test_a_damaged_region_is_unreadable_and_all_others_are_read(slide: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = {tile.id: decode(tile) for tile in tiles(open_source(slide, tile_size=128, mpp=0.5))}
    spoil(slide, (400, 300))

    unreadable = []
    for tile in tiles(open_source(slide, tile_size=128, mpp=0.5)):
        try:
            np.testing.assert_array_equal(decode(tile), whole.pop(tile.id))
        except UnreadableImageError as error:
            unreadable.append((tile.id, str(error)))

    assert list(whole) == ["s.tif/384_256"]
    ((name, told),) = unreadable
    assert name == "s.tif/384_256"
    assert told.startswith("the slide is damaged there: ")
    capfd.readouterr()  # libtiff writes to standard error


def test_glass_is_not_pure_white_here() -> None:
    assert GLASS != (255, 255, 255)  # or the mask would be easier than on a real slide
