"""The documentation site: it builds, nothing in it is stale or missing, and nothing leads nowhere."""

import re
import shutil
import types
from pathlib import Path

import pytest
from built_site import ROOT, Site, build

import runtime
from benchmarks import sweep_timm
from runtime import errors, list_models
from runtime.registry import find
from site_pages import PageError, api, included, matrix, navigation, troubleshooting
from site_pages.links import Links

LINKS = Links({"docs/a.md": "a.md", "README.md": "index.md", "bench/": "reports/index.md"}, "https://example.org/r")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("documentation")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    return Site(folder / "site")


def test_every_link_and_picture_leads_somewhere(site: Site) -> None:
    assert len(site.pages) > 15
    assert site.lost() == []


def test_a_browser_asks_no_other_server_for_anything(site: Site) -> None:
    asked = {link for page in site.pages.values() for link in page.loaded if re.match("(?:[a-z]+:)?//", link)}
    styles = [path.read_text() for path in site.folder.rglob("*.css")]

    assert asked == set()
    assert styles
    assert [found for text in styles for found in re.findall(r"(?:url\(|@import) *[\"']?(?:https?:)?//", text)] == []
    # What the theme's script would fetch by itself: the stars of a repository, and mermaid.
    assert not any('data-md-component="source"' in p.path.read_text() for p in site.pages.values())
    assert not any('class="mermaid"' in p.path.read_text() for p in site.pages.values())


def test_the_support_matrix_has_every_registered_backbone_and_every_model_of_timm_that_was_tried(site: Site) -> None:
    text = site.pages["backbones.html"].path.read_text()
    names = [name for name in list_models() if not name.startswith("test/")]
    tried = [f"timm/{name}" for name in sweep_timm.read(sweep_timm.RESULTS)]

    assert len(names) >= 55
    assert [name for name in [*names, *tried] if f"<td><code>{name}</code></td>" not in text] == []


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


def test_every_error_has_its_section_and_the_tree_is_drawn(site: Site) -> None:
    page = site.pages["troubleshooting.html"]

    assert len(troubleshooting.declared(errors)) >= 19
    for name, kind in troubleshooting.declared(errors).items():
        assert name in page.ids
        assert str(kind.__doc__) in page.text
    assert "└── VerificationError" in page.text


def test_an_error_without_a_section_and_a_section_without_an_error_fail() -> None:
    written = (ROOT / "docs" / "troubleshooting.md").read_text()
    more = types.ModuleType("runtime.errors", errors.__doc__)
    vars(more).update(vars(errors) | {"NewError": type("NewError", (Exception,), {"__module__": "runtime.errors"})})

    with pytest.raises(PageError, match="no section on NewError: add '## NewError'"):
        troubleshooting.complete(written, more)
    with pytest.raises(PageError, match="speaks of OldError"):
        troubleshooting.complete(f"{written}\n## OldError\n", errors)


def test_every_public_name_is_in_the_reference(site: Site) -> None:
    page = site.pages["api.html"]

    for name in runtime.__all__:
        assert f"runtime.{name}" in page.ids, name
    assert "runtime.errors.ArtifactNotFoundError" in page.ids
    assert "runtime.wrappers.timm" in page.ids
    assert "BACKBONE_ON_FALLBACK sets the default" in page.text  # an argument's own words


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


def test_every_report_is_in_the_site_with_its_plots(site: Site) -> None:
    reports = sorted((ROOT / "benchmarks" / "reports").glob("*.md"))
    plots = sorted((ROOT / "benchmarks" / "reports").glob("*.png"))

    assert reports
    assert plots
    for report in reports:
        assert included.title_of(report.read_text()) in site.pages[f"reports/{report.stem}.html"].text
        assert f"{report.stem}.html" in site.pages["reports/index.html"].links
    for plot in plots:
        assert (site.folder / "reports" / plot.name).read_bytes() == plot.read_bytes()


def test_the_picture_of_the_journeys_is_shown(site: Site) -> None:
    assert "journeys.svg" in site.pages["concepts.html"].loaded
    assert "eager module" in (site.folder / "journeys.svg").read_text()


def test_the_first_page_is_the_readme_without_its_long_table(site: Site) -> None:
    page = site.pages["index.html"]

    assert "Speed" in page.text
    assert "pathology/mahmood_uni2_h" not in page.text
    assert "backbones.html" in page.links
    assert "reports/benchmark.html" in page.links


def test_each_task_is_listed_with_what_it_is_about(site: Site) -> None:
    page = site.pages["how-to.html"]

    for name in navigation.pages_of("How-to", [path.name for path in (ROOT / "docs").glob("*.md")]):
        assert name.replace(".md", ".html") in page.links
    assert "Export backbones, verify them against eager PyTorch and publish what passes." in page.text


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


def test_a_broken_link_a_broken_anchor_and_a_page_in_no_section_fail_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_hooks"))
    hook = ROOT / "docs" / "_hooks" / "hooks.py"
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nhooks: [{hook}]\n")
    with (docs / "concepts.md").open("a") as page:
        page.write("\n[a](gone.md), [b](build.md#gone), [c](#nowhere)\n")

    broken = build(config, tmp_path / "broken")
    (docs / "stray.md").write_text("# Stray\n")
    stray = build(config, tmp_path / "stray")

    assert broken.returncode == 1
    assert broken.stderr.count("WARNING") == 3, broken.stderr
    for link in ("'gone.md'", "'build.md#gone'", "'#nowhere'"):
        assert link in broken.stderr
    assert stray.returncode == 1
    assert "docs/stray.md: in no section of the navigation" in stray.stderr
