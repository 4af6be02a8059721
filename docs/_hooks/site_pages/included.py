"""Files of the repository that are pages of the site as well: included at each build, not copied."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

from site_pages import ROOT, PageError

REPORTS = "benchmarks/reports"
# Place in the repository: place in the site.
DOCUMENTS: Mapping[str, str] = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_TABLE = re.compile(r"<!-- backbones: .*?<!-- end of backbones -->", re.DOTALL)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_INSTEAD = "The table is here: [every registered backbone](docs/backbones.md)."


def places() -> dict[str, str]:
    """Return where in the site each included file is, by its place in the repository."""
    reports = sorted(p.name for kind in ("*.md", "*.png") for p in (ROOT / REPORTS).glob(kind))
    return {**DOCUMENTS, **{f"{REPORTS}/{name}": f"reports/{name}" for name in reports}}


def markdown_of(path: str) -> str:
    """Return the page that an included file makes: itself, but for the README's table of backbones."""
    return _TABLE.sub(_INSTEAD, (ROOT / path).read_text(encoding="utf-8"))


def title_of(markdown: str) -> str:
    """Return a page's title, its first heading.

    Raises:
        PageError: It has none.
    """
    if (title := _TITLE.search(markdown)) is None:
        raise PageError(f"A page has no title: begin it with '# Title'. Its first words: {markdown[:80]!r}.")
    return title[1].strip()


def gist_of(markdown: str) -> str:
    """Return the first sentence below a page's title, without its links."""
    body = _TITLE.split(markdown, maxsplit=1)[-1]
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n")]
    first = next((p for p in paragraphs if p and not p.startswith(("#", "|", "```", "!", "<", "-"))), "")
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first)
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0].rstrip(".:") + "."


def labels(pages: Mapping[str, str]) -> dict[str, str]:
    """Return what lists call the pages: their titles, with the file's name where several share one."""
    titles = {page: title_of(text) for page, text in pages.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return {page: f"{title}: {PurePath(page).stem}" if title in shared else title for page, title in titles.items()}


def reports_page(reports: Mapping[str, str]) -> str:
    """Return the page that lists the reports; `reports` is Markdown by page."""
    lines = [
        "# Benchmark reports",
        "",
        "What was measured, by which command and on which machine. Beside each report its JSON lies in the repository;",
        "`python -m benchmarks.compare` tells noise from a regression between two of them.",
        "",
        *(f"- [{label}]({PurePath(page).name})" for page, label in labels(reports).items()),
    ]
    return "\n".join(lines) + "\n"


def how_to_page(pages: Mapping[str, str]) -> str:
    """Return the page that lists the tasks; `pages` is Markdown by page, in the order of the navigation."""
    lines = [f"- [{title_of(text)}]({page}): {gist_of(text)}" for page, text in pages.items()]
    return "\n".join(["# How-to", "", "A page for each task.", "", *lines]) + "\n"
