"""Tar files as WebDataset writes them, whole and damaged."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from runtime.embedding.decode import decode
from runtime.embedding.sources import Source, open_source
from runtime.embedding.sources.signatures import LENGTH, begins_as_image
from runtime.embedding.sources.webdataset import choose_image, split_name
from runtime.embedding.tile import Tile
from runtime.errors import InputError, UnreadableImageError


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(path: Path, count: int) -> Path:
    """Samples of a label, an image whose grey is its number, and a description."""
    files = []
    for k in range(count):
        files += [(f"{k:04}.cls", b"1"), (f"{k:04}.png", encoded(k % 256)), (f"{k:04}.json", b"{}")]
    return write(path, files)


def tiles(source: Source) -> list[Tile]:
    return list(tiles_one_by_one(source))


def tiles_one_by_one(source: Source) -> Iterator[Tile]:
    for piece in source.pieces():
        yield from source.tiles(piece)


def ids(path: Path | str, **options: str) -> list[str]:
    return [tile.id for tile in tiles(open_source(path, **options))]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.png", "a", "png"),
        ("./a.PNG", "a", "png"),
        ("x.y/a.seg.png", "x.y/a", "seg.png"),
        ("a", "a", ""),
        ("x/._a.png", "x/", ""),
        ("a.", "a", ""),
    ],
)
def test_a_sample_is_what_comes_before_the_first_dot_of_the_base_name(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)


@pytest.mark.parametrize(
    ("extensions", "chosen"),
    [([], None), (["png"], 0), (["seg.png", "png"], 1), (["input.jpg"], 0), (["a.png", "b.jpg", "jpg"], 2)],
)
def test_a_plain_extension_goes_before_one_with_a_prefix(extensions: list[str], chosen: int | None) -> None:
    assert choose_image(extensions, "s") == chosen


@pytest.mark.parametrize("extensions", [["png", "jpg"], ["a.png", "b.png"], ["png", "png"]])
def test_which_of_several_images_is_meant_must_be_said(extensions: list[str]) -> None:
    with pytest.raises(InputError, match=r"x\.tar/a has several images: .*\(--image-column\)"):
        choose_image(extensions, "x.tar/a")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_samples_come_in_order_compressed_or_not(tmp_path: Path, name: str) -> None:
    source = open_source(samples(tmp_path / name, 30))

    assert [(piece.name, piece.count) for piece in source.pieces()] == [(name, None)]
    assert [tile.id for tile in tiles(source)] == [f"{name}/{k:04}" for k in range(30)]
    assert [int(decode(tile)[0, 0, 0]) for tile in tiles(source)] == list(range(30))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("start", [0, 1, 29, 30])
def test_reading_starts_at_any_sample(tmp_path: Path, name: str, start: int) -> None:
    source = open_source(samples(tmp_path / name, 30))

    found = list(source.tiles(source.pieces()[0], start))

    assert [tile.id for tile in found] == [f"{name}/{k:04}" for k in range(start, 30)]
    assert [int(decode(tile)[0, 0, 0]) for tile in found] == list(range(start, 30))


def test_a_set_is_a_folder_a_glob_or_a_range(tmp_path: Path) -> None:
    for name in ("s-000", "s-001", "s-002"):
        write(tmp_path / f"{name}.tar", [("a.png", b"x")])
    every = ["s-000.tar/a", "s-001.tar/a", "s-002.tar/a"]

    assert ids(tmp_path) == every
    assert ids(tmp_path / "s-*.tar") == every
    assert ids(tmp_path / "s-{001..002}.tar") == every[1:]


def test_tars_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write(tmp_path / folder / "0.tar", [("a.png", b"x")])

    assert ids(tmp_path) == ["x/0.tar/a", "y/0.tar/a"]


def test_what_belongs_to_no_sample_is_passed_over(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        [("README", b""), ("._a.png", b""), ("a.json", b"{}"), ("a.png", b"x"), ("b.txt", b""), ("d/c.jpg", b"y")],
    )

    assert ids(path) == ["a.tar/a", "a.tar/d/c"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_sample_whose_image_is_not_called_as_one_is_listed(tmp_path: Path, name: str, start: int) -> None:
    files = [
        ("a.json", b"{}"),
        ("b.jepg", b"\xff\xd8\xff\xe0"),
        ("b.json", b"{}"),
        ("c.png", encoded(1)),
        ("d.txt", b"II"),
    ]
    source = open_source(write(tmp_path / name, [*files, ("c2.gif", b"GIF89a....")]))

    found = list(source.tiles(source.pieces()[0], start))

    assert [tile.id for tile in found] == [f"{name}/b", f"{name}/c", f"{name}/c2"][start:]
    told = "it has an image that is not called as one, .gif: rename it, or name it with image_column (--image-column)"
    assert str(found[-1].image) == told
    assert ids(tmp_path / name, image_column="jepg") == [f"{name}/b"]


def test_a_name_that_is_not_utf8_becomes_an_id_that_is(tmp_path: Path) -> None:
    assert ids(write(tmp_path / "a.tar", [("\udcff.png", b"x")])) == ["a.tar/\\xff"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000"])
def test_an_image_is_known_by_what_it_begins_with(form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, form)

    assert begins_as_image(buffer.getvalue()[:LENGTH])


@pytest.mark.parametrize("start", [b"", b"{}", b"BMI of patients", b"RIFF....WAVE", b"%PDF-1.4"])
def test_what_begins_otherwise_is_no_image(start: bytes) -> None:
    assert not begins_as_image(start)


def test_the_image_that_was_named_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.in.png", encoded(1)), ("a.out.png", encoded(2)), ("b.out.png", encoded(3))])

    (tile,) = tiles(open_source(path, image_column=".in.PNG"))
    assert (tile.id, decode(tile)[0, 0, 0]) == ("a.tar/a", 1)
    assert ids(path, image_column="out.png") == ["a.tar/a", "a.tar/b"]
    with pytest.raises(InputError, match=r"a\.tar/a has several images: in\.png, out\.png"):
        ids(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("start", range(6))
def test_a_key_that_comes_again_is_listed_and_the_others_are_read(tmp_path: Path, name: str, start: int) -> None:
    keys = ["a", "b", "a", "c", "a", "d"]
    path = write(tmp_path / name, [(f"{key}.png", encoded(grey)) for grey, key in enumerate(keys)])
    source = open_source(path)

    found = list(source.tiles(source.pieces()[0], start))

    named = ["a", "b", "a (sample 2)", "c", "a (sample 4)", "d"]
    assert [tile.id for tile in found] == [f"{name}/{key}" for key in named[start:]]
    told = f"its key comes again: {name}/a is the first one's id. Give each sample a key of its own"
    for grey, tile in enumerate(found, start):
        if grey in (2, 4):
            assert str(tile.image) == told
        else:
            assert decode(tile)[0, 0, 0] == grey


def test_a_tar_without_an_image_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.json", b"{}")])

    with pytest.raises(InputError, match=r"a\.tar holds no image"):
        ids(path)
    with pytest.raises(InputError, match=r"holds no image called \.tif"):
        ids(path, image_column="tif")


def test_an_empty_image_and_a_link_are_unreadable_and_the_next_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.png", b""), ("c.png", encoded(3))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("d.png")
        link.type, link.linkname = tarfile.LNKTYPE, "c.png"
        tar.addfile(link)
    empty, good, linked = tiles(open_source(path))

    assert decode(good)[0, 0, 0] == 3
    for tile, told in ((empty, r"it is empty"), (linked, "it is a link to 'c.png': write the tar with --hard-deref")):
        with pytest.raises(UnreadableImageError, match=told):
            decode(tile)


@pytest.mark.parametrize("content", [b"", b"This is text. " * 100, b"\x1f\x8b\x08 no gzip " * 50])
def test_what_is_no_tar_is_told_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)

    with pytest.raises(InputError, match=r"a\.tar is no readable tar file: "):
        open_source(tmp_path)


def cut(content: bytes) -> bytes:
    return content[: int(len(content) * 0.6)]


def overwrite(content: bytes) -> bytes:
    middle = len(content) * 3 // 5
    return content[:middle] + b"\xaa" * 5000 + content[middle + 5000 :]


def cut_between_files(content: bytes) -> bytes:
    return content[: 100 * (512 + 3072)]


def cut_within_a_header(content: bytes) -> bytes:
    return content[: 100 * (512 + 3072) + 100]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.tar", cut),
        ("a.tar", cut_between_files),
        ("a.tar", cut_within_a_header),
        ("a.tar", overwrite),
        ("a.tar.gz", cut),
        ("a.tar.gz", overwrite),
    ],
)
def test_damage_is_the_last_tile_of_a_tar(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    random = np.random.default_rng(0)
    path = write(tmp_path / name, [(f"{k}.png", random.bytes(3000)) for k in range(200)])
    path.write_bytes(damage(path.read_bytes()))
    source = open_source(path)
    *found, last = tiles_one_by_one(source)

    assert last.id == name
    number = int(str(last.image).removeprefix("the tar is damaged from sample ").split()[0])
    assert 98 <= number < 130  # whether the last one is whole is not known
    assert [tile.id for tile in found] == [f"{name}/{k}" for k in range(number)]
    for start in (number - 1, number, number + 1):
        rest = [*found, last][start:]
        assert [tile.id for tile in source.tiles(source.pieces()[0], start)] == [tile.id for tile in rest]


def test_one_that_is_no_tar_is_a_tile_and_the_others_are_read(tmp_path: Path) -> None:
    for name in ("a", "c"):
        samples(tmp_path / f"{name}.tar", 2)
    (tmp_path / "b.tar").touch()

    found = tiles(open_source(tmp_path))

    assert [tile.id for tile in found] == ["a.tar/0000", "a.tar/0001", "b.tar", "c.tar/0000", "c.tar/0001"]
    assert str(found[2].image).startswith("is no readable tar file: ")


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(samples(tmp_path / "a.tar", 2))

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tarfile, "open", fail)
    with pytest.raises(InputError, match=r"from sample 0 on: \[Errno 5\] .* with --resume"):
        tiles(source)


def test_the_fingerprint_changes_with_names_and_the_image_taken_and_the_stamp_with_the_size(tmp_path: Path) -> None:
    path = samples(tmp_path / "a.tar", 3)
    seen = {open_source(path).fingerprint(), open_source(path, image_column="png").fingerprint()}
    stamps = {open_source(path).pieces()[0].stamp}
    samples(path, 40)
    seen.add(open_source(path).fingerprint())
    stamps.add(open_source(path).pieces()[0].stamp)
    assert (len(seen), len(stamps)) == (2, 2)

    path.rename(tmp_path / "b.tar")
    assert open_source(tmp_path).fingerprint() not in seen


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [(f"{k:05}.png", b"x") for k in range(30_000)])
    source = open_source(path)
    process, sizes = psutil.Process(os.getpid()), []
    for number, _ in enumerate(source.tiles(source.pieces()[0])):
        if number % 5000 == 0:
            sizes.append(process.memory_info().rss)

    assert sizes[-1] - sizes[1] < 5e6  # with every header kept, 25 MB more
