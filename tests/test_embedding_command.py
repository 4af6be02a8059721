"""`python -m runtime.embed`: what it prints, how it ends, what an interrupt, a full disk and SIGKILL leave behind."""

import contextlib
import io
import itertools
import json
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from embedding_inputs import NAME, image_folder, table_of, tiny
from PIL import Image
from rich.console import Console

from runtime.arguments import join_negative
from runtime.embedding import command, display
from runtime.embedding.arguments import parser_of_embed
from runtime.embedding.summary import Summary

ROOT = Path(__file__).resolve().parent.parent
COUNT, BAD = 200, (7, 130)


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("input") / "tiles", COUNT, BAD)


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return [f"{number:06}.jpg" for number in range(COUNT) if number not in BAD]


def model_of(built: Path) -> tuple[str, ...]:
    return ("--backend", "onnx", "--weights", "random", "--artifacts", str(built), "--device", "cpu")


def call(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command.main([str(a) for a in arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def test_a_folder_of_images_becomes_a_parquet_dataset(built: Path, tiles: Path, tmp_path: Path, ids: list[str]) -> None:
    ran = call(NAME, tiles, "--out", tmp_path / "out", *model_of(built))

    assert ran.status == 1  # two of them cannot be read
    assert ran.out == ""
    assert f"198 rows in {tmp_path}/out: 200 tiles in" in ran.err
    assert f"2 tiles could not be read: see {tmp_path}/out/_unreadable" in ran.err
    rows = table_of(tmp_path / "out")
    assert rows["id"].to_pylist() == ids
    model, place = tiny(built), ids.index("000100.jpg")
    expected = model(model.preprocess(Image.open(tiles / "000100.jpg")))[0]
    np.testing.assert_array_equal(rows["embedding"][place].as_py(), expected)


def test_the_summary_as_json(built: Path, tiles: Path, tmp_path: Path) -> None:
    ran = call(NAME, tiles, "--out", tmp_path, *model_of(built), "--json", "--allow-unreadable", 2)

    assert ran.status == 0
    told = json.loads(ran.out)
    assert {
        name: told[name] for name in ("rows", "unreadable", "tiles", "backend", "device", "precision", "model")
    } == {
        "rows": 198,
        "unreadable": 2,
        "tiles": 200,
        "backend": "onnx",
        "device": "cpu",
        "precision": "fp32",
        "model": NAME,
    }
    assert told["seconds"] > 0
    assert ran.err == ""


def test_a_second_run_is_told_both_ways_to_go_on(built: Path, tiles: Path, tmp_path: Path) -> None:
    call(NAME, tiles, "--out", tmp_path, *model_of(built))

    again = call(NAME, tiles, "--out", tmp_path, *model_of(built))
    resumed = call(NAME, tiles, "--out", tmp_path, *model_of(built), "--resume", "--json")

    assert again.status == 1
    assert again.err.startswith(f"error: {tmp_path} already holds 1 parts of this very run. Go on with --resume, or")
    assert json.loads(resumed.out)["tiles"] == 0
    assert resumed.status == 1  # what could not be read then is not here now either


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("test/nothing", "tiles", "--out", "out"), 2, "No backbone is registered as 'test/nothing'"),
        ((NAME, "tiles"), 2, "the following arguments are required: --out"),
        ((NAME, "tiles", "--out", "out", "--resume", "--overwrite"), 2, "leave one out"),
        (
            (NAME, "tiles", "--out", "out", "--option", "seed=1", "--seed", "1"),
            2,
            "seed has an option of its own, --seed",
        ),
        ((NAME, "tiles", "--out", "out", "--option", "speed=1"), 2, "got an unknown keyword: speed"),
        ((NAME, "tiles", "--out", "out", "--out-indices", "-9"), 2, "-9 out of range"),
        ((NAME, "tiles", "--out", "out", "--batch-size", "0"), 2, "'0' is not a number of at least 1"),
        ((NAME, "tiles", "--out", "out", "--allow-unreadable", "-5"), 2, "'-5' is not a number of at least 0"),
        ((NAME, "tiles", "--out", "out", "--tile-size", "512"), 1, "tile_size=512 does not fit"),
        ((NAME, "tiles", "--out", "out", "--import", "no_such_module"), 2, "No module named 'no_such_module'"),
        ((NAME, "nowhere", "--out", "out"), 1, "error: "),
        (
            (NAME, "tiles", "--out", "out", "--backend", "onnx", "--on-fallback", "error"),
            1,
            "error: No onnx artifact of",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_by_the_status(
    arguments: tuple[str, ...], status: int, said: str, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKBONE_ARTIFACTS", str(tmp_path / "artifacts"))
    (tmp_path / "tiles").symlink_to(tiles)

    ran = call(*arguments)

    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(
    built: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.embedding.opening.installed", lambda package: package != "pyarrow")

    ran = call(NAME, tiles, "--out", tmp_path / "out", *model_of(built))

    assert ran.status == 2
    assert "Writing embeddings needs pyarrow: pip install 'backbone-runtime[embed]'" in ran.err


def test_the_help_has_examples_and_statuses() -> None:
    ran = call("--help")

    assert ran.status == 0
    assert "python -m runtime.embed pathology/kaiko_vits16 tiles/ --out embeddings/" in ran.out
    assert "exit status: 0 every tile is embedded, 1 " in ran.out


def test_progress_is_shown_on_a_terminal() -> None:
    screen = io.StringIO()
    with display.bar(Console(file=screen, force_terminal=True, width=100)) as progress:
        assert progress is not None
        for done in (64, 128, 192):
            time.sleep(0.01)
            progress(done, 1000)
        time.sleep(0.2)
    assert "192/1000" in screen.getvalue()
    assert "tiles/s" in screen.getvalue()


def test_the_bar_says_what_it_waits_for_and_counts_what_was_done_before() -> None:
    screen = io.StringIO()
    with display.bar(Console(file=screen, force_terminal=True, width=100)) as progress:
        time.sleep(0.2)
        assert "listing the input, loading the model" in screen.getvalue()
        progress(600, 1000)
        time.sleep(0.2)
    assert "600/1000" in screen.getvalue()


def test_where_nobody_watches_a_line_tells_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "EVERY", 0.05)
    with display.shown(Console(file=io.StringIO())) as progress:
        time.sleep(0.2)
        progress(5000, 10_000)
        progress(6000, 10_000)
        time.sleep(0.2)
        progress(7000, None)
        time.sleep(0.2)
    told = capsys.readouterr().err.splitlines()
    time.sleep(0.2)

    assert told[0] == "listing the input, loading the model"
    assert any(re.fullmatch(r"6,000 of 10,000 tiles, [\d,]+\.\d tiles/s", line) for line in told)
    assert any(line.startswith("7,000 of ? tiles, ") for line in told)
    assert capsys.readouterr().err == ""


def test_without_rich_a_terminal_is_told_what_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with display.shown(None):
            pass
        hint = "a bar would be shown here with rich: pip install 'backbone-runtime[embed]'\n"
        assert capsys.readouterr().err == (hint if terminal else "")


def test_a_glob_that_the_shell_expanded_is_told_in_a_line(tiles: Path, tmp_path: Path) -> None:
    files = sorted(tiles.glob("*.jpg"))
    for arguments in ((NAME, *files, "--out", tmp_path / "out"), (NAME, "--out", tmp_path / "out", *files)):
        ran = call(*arguments)

        assert ran.status == 2
        assert f"error: one INPUT is taken, and 200 were given, such as {files[1]}: quote the glob" in ran.err
        assert ran.err.count(".jpg") == 2
    assert "unrecognized arguments: --quick" in call(NAME, tiles, "--out", tmp_path / "out", "--quick").err


def test_the_summary_in_words() -> None:
    summary = Summary("out", 1_234_567, 3, 1000, 12.34, 81.0, 0.126, "test/a", "onnx", "cuda:0", "fp16")
    assert display.text(summary) == (
        "1,234,567 rows in out: 1,000 tiles in 12.3 s, 81.0 tiles/s (test/a, onnx on cuda:0, fp16; inference waited "
        "13% of the time)\n3 tiles could not be read: see out/_unreadable"
    )


def test_files_that_were_ignored_are_counted_in_words() -> None:
    summary = Summary("out", 1, 0, 1, 1.0, 1.0, 0.0, "test/a", "onnx", "cpu", "fp32", {".jepg": 1, "": 1, ".gif": 1200})
    assert display.text(summary).endswith("\nignored: 1,202 files (.gif 1,200, no suffix 1, .jepg 1)")


def test_ignored_files_are_counted_in_the_summary(built: Path, tmp_path: Path) -> None:
    tiles = image_folder(tmp_path / "tiles", 2)
    (tiles / "x.jepg").write_bytes(b"")
    arguments = (NAME, tiles, "--out", tiles / "out", *model_of(built), "--resume", "--json")

    for to_do in (2, 0):  # the folder of embeddings lies in its input
        told = json.loads(call(*arguments).out)
        assert (told["ignored"], told["tiles"], told["rows"]) == ({".jepg": 1}, to_do, 2)


def test_an_input_without_tiles_is_warned_of(built: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")

    ran = call(NAME, tmp_path / "a.parquet", "--out", tmp_path / "out", *model_of(built), "--json")

    assert ran.status == 0
    assert ran.err == "warning: nothing was embedded: no slide of the input has tissue, or no Parquet file a row\n"


def start(built: Path, tiles: Path, out: Path, *more: object, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with parts of few tiles, so that a signal meets it at work."""
    arguments = [NAME, tiles, "--out", out, *model_of(built), "--batch-size", 4, "--part-tiles", 8, "--resume", *more]
    line = [sys.executable, "-m", "runtime.embed", *map(str, arguments), "--import", "tiny_backbones"]
    given: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, **given, **options)


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def parts(out: Path) -> int:
    return len(list(out.glob("part-*")))


def interruptible_again() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs inherit that it is ignored


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough tiles that a signal comes in time."""
    return image_folder(tmp_path_factory.mktemp("input") / "many", 4000, BAD)


def many_ids() -> list[str]:
    return [f"{number:06}.jpg" for number in range(4000) if number not in BAD]


def test_an_interrupt_ends_with_status_130_and_a_folder_to_go_on_with(built: Path, many: Path, tmp_path: Path) -> None:
    with start(built, many, tmp_path, preexec_fn=interruptible_again) as process:
        until(lambda: parts(tmp_path) > 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert err == "interrupted: what was published stays; run the same command with --resume to go on\n"
    done = table_of(tmp_path)["id"].to_pylist()
    assert 0 < len(done) < 3998
    assert call(NAME, many, "--out", tmp_path, *model_of(built), "--resume", "--allow-unreadable", 2).status == 0
    assert table_of(tmp_path)["id"].to_pylist() == many_ids()


def test_killed_twice_and_resumed_every_row_is_there_once(built: Path, many: Path, tmp_path: Path) -> None:
    for more in (3, 5):
        before = parts(tmp_path)
        with start(built, many, tmp_path) as process:
            until(lambda: parts(tmp_path) > before + more, process)  # noqa: B023  (called at once)
            process.kill()
        assert process.returncode == -signal.SIGKILL

    ran = call(NAME, many, "--out", tmp_path, *model_of(built), "--resume", "--json", "--allow-unreadable", 2)

    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["rows"] == 3998
    assert 0 < json.loads(ran.out)["tiles"] < 4000
    assert table_of(tmp_path)["id"].to_pylist() == many_ids()


def test_a_full_disk_is_an_error_and_the_run_goes_on_later(built: Path, many: Path, tmp_path: Path) -> None:
    def no_file_over_10_kb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    with start(built, many, tmp_path) as process:
        until(lambda: parts(tmp_path) > 2, process)
        process.kill()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("part-*")}

    # A part of 8 rows takes 4 kB, one of 80 does not fit.
    with start(built, many, tmp_path, "--part-tiles", 80, preexec_fn=no_file_over_10_kb) as process:
        out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (1, "")
    assert err.startswith(
        f"error: {tmp_path} cannot be written: File too large. The parts that were published are whole"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.glob("part-*")} == before
    assert not list(tmp_path.glob(".part-*"))
    assert call(NAME, many, "--out", tmp_path, *model_of(built), "--resume", "--allow-unreadable", 2).status == 0
    assert table_of(tmp_path)["id"].to_pylist() == many_ids()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_is_an_error_and_the_run_goes_on_later(
    built: Path, many: Path, small_disk: Path
) -> None:
    with start(built, many, small_disk / "out", "--part-tiles", 200) as process:
        out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (1, "")
    assert f"error: {small_disk}/out cannot be written: No space left on device. The parts that were published" in err
    assert err.endswith("are whole: free space, and run the same command with --resume.\n")
    assert 0 < table_of(small_disk / "out").num_rows < 3998
    assert not list((small_disk / "out").rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    ran = call(NAME, many, "--out", small_disk / "out", *model_of(built), "--resume", "--allow-unreadable", 2)
    assert ran.status == 0, ran.err
    assert table_of(small_disk / "out")["id"].to_pylist() == many_ids()


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_and_resumed_every_row_is_there_once(
    built: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    count = 100_000
    tiles = image_folder(tmp_path_factory.mktemp("input") / "tiles", count, BAD)
    moments = random.Random(5)
    options = ("--batch-size", 32, "--part-tiles", 256)
    for _ in range(10):
        before = parts(tmp_path)
        with start(built, tiles, tmp_path, *options) as process:
            until(lambda: parts(tmp_path) > before, process)  # noqa: B023  (called at once)
            time.sleep(moments.uniform(0, 1.5))
            process.kill()
        assert process.returncode == -signal.SIGKILL

    ran = call(NAME, tiles, "--out", tmp_path, *model_of(built), "--resume", "--json", "--allow-unreadable", 2)

    assert ran.status == 0, ran.err
    assert 0 < json.loads(ran.out)["tiles"] < count
    ids = table_of(tmp_path)["id"].to_pylist()
    assert ids == [f"{number:06}.jpg" for number in range(count) if number not in BAD]


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("maps", [False, True], ids=["embeddings", "feature maps"])
def test_killed_at_any_moment_from_its_start_on_and_resumed_every_row_is_there_once(
    built: Path, many: Path, tmp_path: Path, maps: bool
) -> None:
    moments, options = random.Random(12), ["--batch-size", 8, "--part-tiles", 32, *(["--out-indices", 2] * maps)]
    began = time.monotonic()
    with start(built, many, tmp_path, *options) as process:
        until(lambda: parts(tmp_path) > 0, process)
        process.kill()
    to_first_part = time.monotonic() - began
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    begun = 0
    for _ in range(20):  # while it is imported, lists, makes the folder, cleans it, embeds
        with start(built, many, tmp_path, *options) as process:
            time.sleep(moments.uniform(0, 1.3 * to_first_part))
            process.kill()
        begun += (tmp_path / "_embed.json").exists()

    ran = call(NAME, many, "--out", tmp_path, *model_of(built), *options, "--resume", "--json", "--allow-unreadable", 2)

    assert ran.status == 0, ran.err
    assert begun > 0
    assert not list(tmp_path.glob(".*.tmp"))
    rows = table_of(tmp_path)
    assert rows["id"].to_pylist() == many_ids()
    if maps:
        assert_maps_of_some(built, many, tmp_path, rows)


def assert_maps_of_some(built: Path, tiles: Path, out: Path, rows: Any) -> None:
    arrays = [zarr.open_group(out / "_maps.zarr", mode="r")[f"map_{number}"] for number in range(2)]
    places = rows["row"].to_pylist()
    assert len(set(places)) == len(places)
    assert not any(np.isnan(array[place]).any() for array in arrays for place in places[::17])
    with tiny(built, out_indices=2) as model:
        for id, place in zip(rows["id"].to_pylist()[::200], places[::200], strict=True):
            for array, expected in zip(arrays, model(model.preprocess(Image.open(tiles / id))), strict=True):
                np.testing.assert_array_equal(array[place], expected[0])


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_after_the_first_5000_tiles(
    built: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    count = 100_000
    tiles = image_folder(tmp_path_factory.mktemp("input") / "tiles", count)
    with start(built, tiles, tmp_path, "--batch-size", 32, "--part-tiles", 1024) as process:
        measured = list(resident(process, tmp_path, every=5))
        _, err = process.communicate()

    assert process.returncode == 0, err
    done, sizes = np.array([one for one in measured if one[0] >= 5_000], np.float64).T
    assert len(done) >= 15
    # Of the whole line, so that neither a late nor an early growth hides: 5 MB would be 50 bytes a tile.
    growth = np.polyfit(done, sizes, 1)[0] * (done[-1] - done[0])
    assert growth < 5e6, measured
    assert np.median(sizes[-5:]) < np.median(sizes[:3]) + 8e6, measured


def resident(process: subprocess.Popen[str], out: Path, every: int) -> Iterator[tuple[int, int]]:
    """Yield how many tiles are published and the process's resident bytes, after every few parts."""
    watched = psutil.Process(process.pid)
    for number in itertools.count(every, every):
        while process.poll() is None and parts(out) < number:
            time.sleep(0.05)
        if process.poll() is not None:
            return
        yield 1024 * number, watched.memory_info().rss


def test_every_command_of_the_page_is_understood_and_every_option_of_it_exists() -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    commands = re.findall(r"^\$ python -m runtime\.embed ([^#\n]+)", page, re.MULTILINE)
    assert len(commands) == 3
    for line in commands:
        parser_of_embed().parse_args(join_negative(shlex.split(line)))
    known = {option for action in parser_of_embed()._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page)) <= known


def test_the_page_names_every_field_of_the_summary() -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    assert [field for field in Summary.__dataclass_fields__ if f"`{field}`" not in page] == []
