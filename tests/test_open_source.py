"""What lies at a place decides how it is read; what cannot be read is said before anything is."""

import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import Pieces

from runtime.embedding.sources import Source, coordinates, ignored, open_source
from runtime.embedding.sources.folder import NAMES_PER_PIECE, Folder
from runtime.embedding.sources.kinds import Found, choose, kind_of, suffix_of
from runtime.embedding.sources.listing import expand_range
from runtime.embedding.sources.npy import Npy
from runtime.embedding.sources.parquet import Parquet
from runtime.embedding.sources.webdataset import WebDataset
from runtime.errors import DependencyError, InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def ids(path: Path | str) -> list[str]:
    source = open_source(path)
    return [tile.id for piece in source.pieces() for tile in source.tiles(piece)]


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "images"),
        ("a/b.c/D.JPG", "images"),
        ("a.tif", "images"),
        ("a.parquet", "parquet"),
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("a.TGZ", "tar"),
        ("a.npy", "npy"),
        ("a.svs", "slides"),
        ("a.gz", None),
        ("png", None),
        ("a.png/b", None),
    ],
)
def test_a_name_says_which_kind_a_file_is(name: str, kind: str | None) -> None:
    assert kind_of(name, slides=False) == kind


def test_a_tiff_is_a_slide_where_slides_are_meant() -> None:
    assert kind_of("a.TIFF", slides=True) == kind_of("a.tif", slides=True) == "slides"
    assert kind_of("a.png", slides=True) == "images"


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.b.CSV", ".csv"), ("a.b/README", ""), ("x", ""), (".hidden", ".hidden")]
)
def test_a_suffix_is_what_follows_the_last_dot_of_the_base_name(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


@pytest.mark.parametrize(
    ("kinds", "others", "told"),
    [
        ({}, {}, ["in holds no file", "nothing that can be embedded", "Understood are images (.png, "]),
        ({}, {".csv": 2, "": 5}, ["in holds files (5 of no suffix, 2 of .csv)"]),
        ({}, {f".{c}": 1 for c in "abcdef"}, [".e, ...)"]),
        ({"images": 3, "parquet": 1}, {}, ["several kinds of input: images (3), parquet (1)", "'in/**/*.png'"]),
    ],
)
def test_nothing_and_a_mixture_are_told_with_what_was_found(
    kinds: dict[str, int], others: dict[str, int], told: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        choose(Found("in", kinds, others))  # type: ignore[arg-type]
    for words in told:
        assert words in str(caught.value)


def test_one_kind_is_chosen_whatever_else_lies_there() -> None:
    assert choose(Found("in", {"tar": 2}, {".json": 2})) == "tar"


def write_kinds(folder: Path) -> dict[str, Path]:
    touch(folder / "images", "a.png", "notes.txt")
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), folder / "parquet" / "a.parquet")
    (folder / "tar").mkdir()
    with tarfile.open(folder / "tar" / "a.tar", "w") as tar:
        tar.add(folder / "images" / "a.png", "a.png")
    (folder / "npy").mkdir()
    np.save(folder / "npy" / "a.npy", np.zeros((2, 4, 4, 3), np.uint8))
    return {kind: folder / kind for kind in ("images", "parquet", "tar", "npy")}


@pytest.mark.parametrize(
    ("kind", "expected"), [("images", Folder), ("parquet", Parquet), ("tar", WebDataset), ("npy", Npy)]
)
def test_a_folder_a_file_and_a_glob_are_read_by_what_they_hold(tmp_path: Path, kind: str, expected: type) -> None:
    folder = write_kinds(tmp_path)[kind]
    file = next(path for path in folder.iterdir() if path.suffix != ".txt")

    for path in (folder, file, str(folder / "[a].*"), os.path.relpath(folder)):
        source = open_source(path)
        assert type(source) is expected
        assert len(source.pieces()) == 1


def test_every_source_can_be_pickled_and_read_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in write_kinds(tmp_path).values():
        monkeypatch.chdir(tmp_path)
        source = open_source(folder.name)
        monkeypatch.chdir("/")
        again = pickle.loads(pickle.dumps(source))
        (piece,) = again.pieces()

        (first, *_) = again.tiles(piece)
        assert again.fingerprint() == source.fingerprint()
        assert not isinstance(first.image, Path) or first.image.is_file()


def test_the_same_input_has_the_same_fingerprint_elsewhere_and_none_has_anothers(tmp_path: Path) -> None:
    here, there = write_kinds(tmp_path / "here"), write_kinds(tmp_path / "there")
    of = {kind: open_source(path).fingerprint() for kind, path in here.items()}
    of_tars = {open_source(there["tar"]).fingerprint(), of["tar"]}

    assert {kind: open_source(path).fingerprint() for kind, path in there.items()} == of
    assert len(set(of.values())) == 4
    assert len(of_tars) == 1


def test_images_are_sorted_by_their_path_below_the_folder(tmp_path: Path) -> None:
    names = ["z.png", "a/b/ü.jpg", "a/b.png", "a-b.tiff", "A.webp", "a/2.png", "a/10.png"]
    touch(tmp_path, *names, "a/labels.csv", ".hidden.png", ".git/x.png", "a/._2.png")

    assert ids(tmp_path) == sorted(names, key=str.encode)


def test_an_image_is_named_by_its_path_and_read_from_it(tmp_path: Path) -> None:
    source = open_source(touch(tmp_path, "a/b.png"))
    (tile,) = source.tiles(source.pieces()[0])

    assert tile.image == tmp_path / "a/b.png"
    assert tile.coordinates is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("tiles/*.png", ["a.png", "b.png"]),
        ("tiles/**/*.png", ["a.png", "b.png", "deep/c.png"]),
        ("tiles/**/**/*.png", ["a.png", "b.png", "deep/c.png"]),
        ("tiles/**", ["a.png", "b.jpg", "b.png", "deep/c.png"]),
        ("t*/b.*", ["tiles/b.jpg", "tiles/b.png"]),
        ("tiles/[ab].png", ["a.png", "b.png"]),
    ],
)
def test_ids_of_a_glob_are_relative_to_its_fixed_part(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    touch(tmp_path, "tiles/a.png", "tiles/b.png", "tiles/b.jpg", "tiles/deep/c.png", "tiles/.d.png", "tiles/e.txt")

    assert ids(tmp_path / pattern) == expected


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "run[1]", "a.png")
    touch(tmp_path / "run1", "b.png")

    assert ids(tmp_path / "run[1]") == ["a.png"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/deep/x.png", "elsewhere/y.png", "in/p/f.png", "in/q/g.png")
    for link, target in (
        ("in/linked", "elsewhere"),
        ("in/a/deep/root", "in"),
        ("in/a/deep/up", "in/a"),
        ("elsewhere/across", "in/linked"),
        ("in/p/q", "in/q"),
        ("in/q/p", "in/p"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)

    assert ids(tmp_path / "in") == [
        "a/deep/x.png",
        "linked/y.png",
        "p/f.png",
        "p/q/g.png",
        "q/g.png",
        "q/p/f.png",
    ]


def test_a_link_to_nowhere_is_listed_to_be_reported(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")

    assert ids(tmp_path) == ["gone.png"]


@pytest.mark.parametrize("count", [1, NAMES_PER_PIECE, NAMES_PER_PIECE + 1, 2 * NAMES_PER_PIECE + 5])
def test_a_long_listing_is_several_pieces(tmp_path: Path, count: int) -> None:
    for number in range(count):
        os.mknod(tmp_path / f"{number:06}.png")
    source = open_source(tmp_path)

    pieces = source.pieces()

    assert [piece.name for piece in pieces] == [f"{k:06}" for k in range(-(-count // NAMES_PER_PIECE))]
    assert sum(piece.count or 0 for piece in pieces) == count
    for piece in pieces:
        assert piece.count == len(list(source.tiles(piece)))
    rest = [tile.id for tile in source.tiles(pieces[0], min(count, NAMES_PER_PIECE) - 1)]
    assert rest == [f"{min(count, NAMES_PER_PIECE) - 1:06}.png"]  # and none of the next piece
    last = pieces[-1]
    assert last.count is not None
    assert [tile.id for tile in source.tiles(last, last.count - 1)] == [f"{count - 1:06}.png"]
    assert list(source.tiles(last, last.count)) == []


def add(folder: Path) -> None:
    touch(folder, "c.png")


def rename(folder: Path) -> None:
    (folder / "b.png").rename(folder / "bb.png")


@pytest.mark.parametrize("change", [add, rename])
def test_the_fingerprint_of_a_folder_changes_with_names_alone(tmp_path: Path, change: Callable[[Path], None]) -> None:
    touch(tmp_path, "a.png", "b.png")
    before = open_source(tmp_path).fingerprint()
    touch(tmp_path, "notes.txt")
    (tmp_path / "a.png").write_bytes(b"mended, so that it is longer")
    assert open_source(tmp_path).fingerprint() == before

    change(tmp_path)

    assert open_source(tmp_path).fingerprint() != before


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..11}.tar", ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]),
        ("{0..1}/{00..01}", ["0/00", "0/01", "1/00", "1/01"]),
        ("{0..0}", ["0"]),
        ("plain", ["plain"]),
    ],
)
def test_a_range_stands_for_its_numbers(pattern: str, expected: list[str]) -> None:
    assert expand_range(pattern) == expected


def test_a_range_reads_what_it_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{k}/a-{k:02}.png" for k in range(4)))

    assert ids(tmp_path / "{1..2}/a-{01..02}.png".replace("{1..2}", "1").replace("{01..02}", "{01..01}")) == [
        "a-01.png"
    ]
    assert refusal(tmp_path / "{1..2}/a-{01..02}.png").startswith(
        f"{tmp_path}/{{1..2}}/a-{{01..02}}.png names 4 files, and 2 of them do not exist: "
    )


def test_a_range_backwards_is_told(tmp_path: Path) -> None:
    assert "names no file" in refusal(tmp_path / "s-{5..1}.tar")


def test_what_does_not_exist_is_told_with_what_lies_near(tmp_path: Path) -> None:
    touch(tmp_path, "tiles/a.png")

    assert refusal(tmp_path / "tile") == (
        f"There is no {tmp_path}/tile; {tmp_path} holds tiles. "
        "Name a file, a folder, or a glob such as 'tiles/**/*.png'."
    )


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "in/goood/*.jpg",
            "There is no folder {0}/in/goood; {0}/in holds good. {0}/in/goood/*.jpg is looked for in it.",
        ),
        (
            "in/good/*.pgn",
            "{0}/in/good/*.pgn matches no file; {0}/in/good holds a.jpg, b.jpg, n.txt. Files there end in .jpg, .txt. "
            "Perhaps '{0}/in/good/*.jpg' is meant.",
        ),
        ("in/**/*.pgn", "Perhaps '{0}/in/**/*.jpg' is meant."),
        ("in/goo*", "{0}/in/goo* matches only folders, such as {0}/in/good. Name the folder, or the files in all of"),
        ("none/*.jpg", "{0}/none/*.jpg matches no file; {0}/none holds nothing."),
    ],
)
def test_a_glob_that_matches_nothing_is_told_with_what_lies_near(tmp_path: Path, pattern: str, told: str) -> None:
    touch(tmp_path, "in/good/a.jpg", "in/good/b.jpg", "in/good/n.txt")
    (tmp_path / "none").mkdir()

    assert told.format(tmp_path) in refusal(tmp_path / pattern)


@pytest.mark.parametrize("place", ["tiles", "tiles/**", "tiles/**/*.p*", "tiles/*/*"])
def test_folders_of_embeddings_below_the_input_are_none_of_it(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "tiles/x/a.png", "tiles/out/_embed.json", "tiles/out/part-0.parquet", "tiles/out/_unreadable/x")
    touch(tmp_path, "tiles/x/out/_embed.json", "tiles/x/out/part-0.parquet")

    assert [id.rpartition("/")[2] for id in ids(tmp_path / place)] == ["a.png"]


def test_what_is_named_is_read_though_embeddings_lie_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png"]}), touch(tmp_path, "out/_embed.json") / "out" / "list.parquet")

    assert ids(tmp_path / "out") == ids(tmp_path / "out" / "*.parquet") == ["list.parquet/0"]


@pytest.mark.parametrize("place", ["in", "in/*.png", "in/**/*.png", "in/**"])
def test_a_folder_and_a_glob_report_the_same_links_to_nowhere(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere")

    assert ids(tmp_path / place) == ["a.png", "gone.png"]


@pytest.mark.parametrize("place", ["in", "in/**/*.png", "in/*/*.png"])
def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a/x.png", "in/b/y.png")
    scan = os.scandir

    def refuse(path: Any) -> Any:  # as root, permissions refuse nothing
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"cannot be listed: [Errno 13] Permission denied: '{tmp_path}/in/b" in refusal(tmp_path / place)


def test_a_glob_does_not_go_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.png")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")

    assert ids(tmp_path / "in/**/*.png") == ["a/x.png"]


@pytest.mark.parametrize("place", ["in", "in/*"])
def test_files_that_are_none_by_their_names_are_counted_by_suffix(tmp_path: Path, place: str) -> None:
    names = ["a.png", "b.jepg", "c.GIF", "d.gif", "e", ".hidden.gif"]

    assert ignored(open_source(touch(tmp_path, *(f"in/{name}" for name in names)) / place)) == {
        ".jepg": 1,
        ".gif": 2,
        "": 1,
    }


def test_every_source_tells_what_lay_beside_it(tmp_path: Path) -> None:
    for folder in write_kinds(tmp_path).values():
        touch(folder, "x.csv")
        assert ignored(open_source(folder))[".csv"] == 1


def test_a_source_of_ones_own_may_tell_what_lay_beside_it_and_where_its_tiles_lie() -> None:
    class Told(Pieces):
        ignored = {".csv": 2}
        coordinates = ("x", "y")

    sources: list[Source] = [Pieces({}), Told({})]

    assert [ignored(source) for source in sources] == [{}, {".csv": 2}]
    assert [coordinates(source) for source in sources] == [(), ("x", "y")]


def test_suffixes_without_number_do_not_fill_the_memory(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", *(f"run.{number}" for number in range(300)))

    counts = ignored(open_source(tmp_path))

    assert (len(counts), sum(counts.values()), counts[".*"]) == (101, 300, 200)


def test_a_mixture_is_refused_and_its_parts_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    pq.write_table(pa.table({"path": ["a.png"]}), tmp_path / "list.parquet")

    assert "images (1), parquet (1)" in refusal(tmp_path)
    assert ids(tmp_path / "list.parquet") == ["list.parquet/0"]


def test_a_place_that_the_system_refuses_is_told() -> None:
    assert "cannot be listed: [Errno 36] File name too long" in refusal("x" * 300)


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    with Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).open("wb"):
        pass

    assert "b'\\xff.png' is not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("images", {"image_column": "png"}, "image_column='png' does not fit"),
        ("images", {"mpp": 0.5}, "mpp=0.5 does not fit"),
        ("images", {"tile_size": 224}, "tile_size=224 does not fit"),
        ("images", {"slide_mpp": 0.5}, "slide_mpp=0.5 does not fit"),
        ("tar", {"id_column": "key"}, "id_column='key' does not fit"),
        ("npy", {"image_column": "x"}, "which holds npy"),
        ("images", {"tile_size": 0}, "tile_size=0: "),
        ("images", {"mpp": -1.0}, "mpp=-1.0: "),
        ("images", {"mpp": float("nan")}, "mpp=nan: "),
        ("images", {"slide_mpp": 0.0}, "slide_mpp=0.0: "),
    ],
)
def test_options_of_another_kind_or_without_a_meaning_are_refused(
    tmp_path: Path, kind: str, options: dict[str, object], told: str
) -> None:
    assert told in refusal(write_kinds(tmp_path)[kind], **options)


def test_slides_are_not_cut_at_a_resolution_nobody_asked_for(tmp_path: Path) -> None:
    assert "say how many microns a pixel of a tile is with mpp" in refusal(touch(tmp_path, "a.svs"))


@pytest.mark.parametrize(
    ("package", "extra", "options"), [("pyarrow", "embed", {}), ("openslide", "wsi", {"mpp": 0.5})]
)
def test_a_missing_package_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, options: dict[str, float]
) -> None:
    touch(tmp_path, "a.svs")
    for name in [name for name in sys.modules if name.startswith("runtime.embedding.sources.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(DependencyError) as caught:
        open_source(tmp_path, **options)
    assert package in str(caught.value)
    assert f"pip install 'backbone-runtime[{extra}]'" in str(caught.value)
