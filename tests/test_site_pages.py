"""What makes the pages of the documentation: facts in, Markdown out, and what does not fit is an error."""

import types
from pathlib import Path

import pytest
from built_site import ROOT

from runtime import errors
from runtime.registry import find
from site_pages import PageError, api, included, matrix, navigation, troubleshooting
from site_pages.links import Links

LINKS = Links({"docs/a.md": "a.md", "README.md": "index.md", "bench/": "reports/index.md"}, "https://example.org/r")


def test_a_row_of_the_matrix_has_the_facts_of_the_registry_and_what_was_recorded() -> None:
    name = "pathology/mahmood_uni"
    outcome = {"status": "built", "format": "onnx", "target": "cuda", "precision": "fp16", "input": "uint8"}
    record = {
        "model": name,
        "variant": "embedding",
        "parameters": 303_400_000,
        "outcomes": [{"status": "built", "format": "torchscript"}, outcome, {"status": "failed", "format": "pt2"}],
        "outputs": {"onnx": [{"shape": ["batch", 1024], "max_abs": 1e-6, "relative_rms": 1e-7}]},
        "files": {"weights.a.data": 1_213_000_000},
    }

    other = record | {"model": "other/one", "parameters": 1, "outcomes": [outcome | {"precision": "bf16"}]}

    row = matrix.row(find(name), [record, other], ["openvino bf16", "torchscript fp32"])

    assert row == {
        "Backbone": f"`{name}`",
        "Architecture": "UNI, ViT-L/16",
        "Parameters": "303.4 M",
        "Embedding": "1024",
        "Maps": "24",
        "Formats": "onnx, torchscript",
        "Size": "1,213\u00a0MB",
        "Licence": "CC-BY-NC-ND-4.0",
        "Gated": "yes",
        "Verified": "onnx fp16 for cuda from uint8, torchscript fp32, openvino bf16",
        "Difference": "1.0e-06 (rel. 1.0e-07), -",
        "Source": "[MahmoodLab/uni](https://huggingface.co/MahmoodLab/uni)",
    }


def test_what_a_benchmark_measured_counts_as_verified_only_where_it_was_compared_with_eager() -> None:
    forms = matrix.measured_forms()["universal/vit_small_patch16_224_random"]

    assert {"onnx fp32", "onnx int8", "openvino bf16", "pt2 bf16"} <= set(forms)
    assert not any("eager" in form or "torch.compile" in form for form in forms)


def test_an_error_without_a_section_and_a_section_without_an_error_fail() -> None:
    written = (ROOT / "docs" / "troubleshooting.md").read_text()
    more = types.ModuleType("runtime.errors", errors.__doc__)
    vars(more).update(vars(errors) | {"NewError": type("NewError", (Exception,), {"__module__": "runtime.errors"})})

    with pytest.raises(PageError, match="no section on NewError: add '## NewError'"):
        troubleshooting.complete(written, more)
    with pytest.raises(PageError, match="speaks of OldError"):
        troubleshooting.complete(f"{written}\n## OldError\n", errors)


def test_a_function_that_shares_its_name_with_a_commands_file_is_shown_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text(
        "if TYPE_CHECKING:\n    from made.inner.run import embed, load\n    from made import tools\n"
    )
    for name in ("embed.py", "tools.py"):
        (tmp_path / name).touch()
    package = types.ModuleType("made")
    package.__file__ = str(tmp_path / "__init__.py")
    package.__all__ = ["embed", "tools", "load", "other"]

    text = api.page(package)

    assert '<a id="made.embed"></a>\n\n::: made.inner.run.embed\n    options:\n      heading: made.embed\n' in text
    assert text.endswith("\n\n::: made.tools\n\n::: made.load\n\n::: made.other\n")


def test_a_page_that_no_section_names_fails() -> None:
    assert navigation.compose(["index.md", "build.md", "reports/x.md"], {"index.md": "Home"}) == [
        {"Home": "index.md"},
        {"How-to": ["build.md"]},
        {"Benchmarks": ["reports/x.md"]},
    ]
    with pytest.raises(PageError, match=r"docs/stray\.md: in no section"):
        navigation.compose(["index.md", "stray.md"], {})


def test_the_order_of_pages_is_that_of_the_table_not_of_the_alphabet() -> None:
    assert navigation.pages_of("Benchmarks", ["reports/a.md", "reports/benchmark.md", "reports/index.md"]) == [
        "reports/index.md",
        "reports/benchmark.md",
        "reports/a.md",
    ]


def test_a_page_without_a_title_fails_and_its_gist_is_its_first_sentence() -> None:
    text = (
        "---\nhide: [toc]\n---\n# Title\n\n```console\n$ x\n```\n\n`embed` takes [a folder](x.md)\nof tiles. It runs.\n"
    )

    assert included.title_of(text) == "Title"
    assert included.gist_of(text) == "`embed` takes a folder of tiles."
    with pytest.raises(PageError, match=r"no title: begin it with '# Title'"):
        included.title_of("## Only a section\n")


def test_pages_that_share_a_title_are_told_apart() -> None:
    labels = included.labels({"r/a.md": "# Figures\n", "r/b.md": "# Figures\n", "r/c.md": "# Speed\n"})

    assert labels == {"r/a.md": "Figures: a", "r/b.md": "Figures: b", "r/c.md": "Speed"}


@pytest.mark.parametrize(
    ("link", "source", "page", "target"),
    [
        ("../README.md#install", "docs/a.md", "a.md", "index.md#install"),
        ("docs/a.md", "README.md", "index.md", "a.md"),
        ("../../docs/a.md", "bench/reports/x.md", "reports/x.md", "../a.md"),
        ("../bench", "docs/a.md", "a.md", "reports/index.md"),
        ("../bench/", "docs/a.md", "a.md", "reports/index.md"),
        ("../LICENSE", "docs/a.md", "a.md", "https://example.org/r/blob/main/LICENSE"),
        ("gone.md", "docs/a.md", "a.md", "gone.md"),
        ("../..", "docs/a.md", "a.md", "../.."),  # outside of the repository
        ("#here", "docs/a.md", "a.md", "#here"),
        ("https://a.org/docs/a.md", "docs/a.md", "a.md", "https://a.org/docs/a.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(link: str, source: str, page: str, target: str) -> None:
    assert LINKS.rewrite(f"See ![a picture]({link}), it.", source, page) == f"See ![a picture]({target}), it."


def test_code_stays_as_it_is_but_for_the_marks_that_tests_read() -> None:
    text = "```python file=mine.py\nx = [a](../README.md)\n```\n[b](../README.md)\n```console no-run\n$ y\n```"

    assert LINKS.rewrite(text, "docs/a.md", "a.md") == (
        '```python title="mine.py"\nx = [a](../README.md)\n```\n[b](index.md)\n```console\n$ y\n```'
    )
