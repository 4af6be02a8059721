"""The documentation site: it builds, nothing in it is stale or missing, and nothing leads nowhere."""

import re
import shutil
from pathlib import Path

import pytest
from built_site import ROOT, Site, build

import runtime
from benchmarks import sweep_timm
from runtime import errors, list_models
from site_pages import included, navigation, troubleshooting


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


def test_every_error_has_its_section_and_the_tree_is_drawn(site: Site) -> None:
    page = site.pages["troubleshooting.html"]

    assert len(troubleshooting.declared(errors)) >= 19
    for name, kind in troubleshooting.declared(errors).items():
        assert name in page.ids
        assert str(kind.__doc__) in page.text
    assert "└── VerificationError" in page.text


def test_every_public_name_is_in_the_reference(site: Site) -> None:
    page = site.pages["api.html"]

    for name in runtime.__all__:
        assert f"runtime.{name}" in page.ids, name
    assert "runtime.errors.ArtifactNotFoundError" in page.ids
    assert "runtime.wrappers.timm" in page.ids
    assert "BACKBONE_ON_FALLBACK sets the default" in page.text  # an argument's own words


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
