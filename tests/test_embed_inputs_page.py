"""docs/embed-inputs.md: what it lists is what the code knows, its code runs, and its reasons are the ones given."""

import re
from pathlib import Path

import pytest
from slide_files import glass, with_tissue, write_slide

from runtime.embedding import decode, sources
from runtime.embedding.sources import columns, kinds, npy, parquet, slides, webdataset

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "embed-inputs.md").read_text()


def test_every_suffix_and_column_that_is_recognised_is_on_the_page() -> None:
    words = set(re.findall(r"[.\w]+", PAGE))

    assert {*kinds.IMAGES, *kinds.TARS, ".parquet", ".pq", ".npy"} <= words
    assert {*columns.IMAGE_NAMES, *columns.PATH_NAMES, *columns.ID_NAMES} <= words


def test_every_command_names_options_that_open_source_has() -> None:
    options = {f"--{name.replace('_', '-')}" for name in sources.open_source.__annotations__}

    used = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--out", "--hard-dereference"}
    assert used == options & used
    assert used == {"--image-column", "--id-column", "--mpp", "--slide-mpp", "--tile-size"}


def test_every_reason_on_the_page_is_one_that_is_given() -> None:
    code = "".join(Path(module.__file__).read_text() for module in (decode, npy, parquet, slides, webdataset))
    table = PAGE.split("| Reason | What to do |")[1].split("\n\n")[0]
    reasons = [words for cell in re.findall(r"^\| (`.+?`) \|", table, re.M) for words in re.findall(r"`(.+?)`", cell)]

    assert len(reasons) == 22
    for reason in (reason.replace("JPEG, PNG, TIFF, WEBP or BMP", "{known}") for reason in reasons):
        for part in re.split(r"\.\.\.|\(floating-point\)|No such file or directory|32-bit", reason):
            assert part.strip() in code, reason


def test_the_example_prints_every_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slide(tmp_path / "slides" / "s.tif", with_tissue(glass(), 0, 0, 1024, 768))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)

    exec(compile(example, "example.py", "exec"), {})

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "s.tif/0_0 {'x': 0, 'y': 0, 'size': 224, 'mpp': 0.5} (224, 224, 3)"
    assert len(lines) == 3 * 4
