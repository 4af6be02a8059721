"""Links and code blocks of the repository's Markdown, as the site needs them."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from site_pages import ROOT

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})")
_MARKS = re.compile(r"^( *`{3,})(\w+) +([\w= .-]+)$")


@dataclass(frozen=True)
class Links:
    """How links of the repository become links of the site.

    Attributes:
        places: Where in the site a file of the repository is, by its place there.
        repository: Where files are shown that are no page of the site.
    """

    places: Mapping[str, str]
    repository: str

    def rewrite(self, markdown: str, source: str, page: str) -> str:
        """Return the text of the repository's file `source` as that of `page` in the site; code stays as it is."""
        lines, fence = [], ""
        for line in markdown.split("\n"):
            mark = _FENCE.match(line)
            if mark and not fence:
                fence = mark[2]
                line = _without_marks(line)
            elif fence:
                fence = "" if line.strip() == fence else fence
            else:
                line = _LINK.sub(lambda found: f"{found[1]}{self.target(found[2], source, page)}{found[3]}", line)
            lines.append(line)
        return "\n".join(lines)

    def target(self, link: str, source: str, page: str) -> str:
        """Return where a link leads from `page`; one that leads nowhere stays, for mkdocs to report."""
        path, hash_mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = self.places.get(target) or self.places.get(f"{target}/")
        if place:
            return posixpath.relpath(place, posixpath.dirname(page) or ".") + hash_mark + anchor
        if (ROOT / target).exists() and not target.startswith(".."):
            return f"{self.repository}/blob/main/{target}{hash_mark}{anchor}"
        return link


def _without_marks(line: str) -> str:
    """Return a fence without the marks that tests read: `file=` becomes its title, `no-run` goes."""
    found = _MARKS.match(line)
    if not found:
        return line
    file = re.search(r"file=(\S+)", found[3])
    return f"{found[1]}{found[2]}" + (f' title="{file[1]}"' if file else "")
