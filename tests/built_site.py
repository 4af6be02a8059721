"""The documentation as a reader has it: built by mkdocs, in a process of its own, and parsed."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent

# In front of the real package: whoever imports torch while the site is built fails.
NO_TORCH = 'raise AssertionError("the documentation was built with torch imported")\n'


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `config` into folder/site, where nobody may import torch."""
    (folder / "without" / "torch").mkdir(parents=True)
    (folder / "without" / "torch" / "__init__.py").write_text(NO_TORCH)
    paths = [str(folder / "without"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder / "site")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@dataclass
class Page:
    """A page of the built site."""

    path: Path
    text: str = ""
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    """Fills a page: its words, anchors, links, and what a browser would load for it by itself."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.page.ids.append(given["id"])
        if tag == "a" and "href" in given:
            self.page.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "link"):
            self.page.loaded += [given[name] for name in ("src", "href") if name in given]

    def handle_data(self, data: str) -> None:
        self.page.text += data


class Site:
    """A built site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def pages(self) -> dict[str, Page]:
        """The pages, by their places."""
        found = sorted(self.folder.rglob("*.html"))
        return {str(path.relative_to(self.folder)): _read(path) for path in found}

    def lost(self) -> list[str]:
        """Return the links and files of all pages that lead nowhere in the site."""
        return [
            f"{name}: {link}"
            for name, page in self.pages.items()
            if name != "404.html"  # its links start at the root of whatever server it is on
            for link in [*page.links, *page.loaded]
            if not urlsplit(link).scheme and not self._leads_somewhere(page, link)
        ]

    def _leads_somewhere(self, page: Page, link: str) -> bool:
        parts = urlsplit(link)
        target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
        if not parts.fragment or target.suffix != ".html" or not target.is_file():
            return target.is_file()
        there = self.pages[str(target.relative_to(self.folder.resolve()))]
        return unquote(parts.fragment) in there.ids


def _read(path: Path) -> Page:
    page = Page(path)
    _Reader(page).feed(path.read_text(encoding="utf-8"))
    return page
