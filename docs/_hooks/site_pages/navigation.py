"""The order of the pages. A page that no section names fails the build; one that is not there is left out."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from site_pages import PageError

Page = str | dict[str, str]
Nav = list[Page | dict[str, list[Page]]]

# Section, or "" for the top: its pages in order, as globs of their places in docs/.
SECTIONS: Sequence[tuple[str, Sequence[str]]] = (
    ("", ("index.md",)),
    ("Start", ("quick-start.md", "concepts.md")),
    (
        "How-to",
        (
            "how-to.md",
            "build.md",
            "load.md",
            "feature-maps.md",
            "weights.md",
            "speed.md",
            "embed.md",
            "embed-inputs.md",
            "ray.md",
            "scale.md",
            "sharing.md",
            "serving.md",
            "eva.md",
            "eva-migration.md",
            "tools.md",
        ),
    ),
    ("Adding a backbone", ("own_backbones.md", "contributing.md")),
    ("Reference", ("backbones.md", "left_out.md", "commands.md", "api.md", "troubleshooting.md")),
    ("Benchmarks", ("reports/index.md", "reports/benchmark.md", "reports/*.md")),
    ("Project", ("decisions.md", "changelog.md")),
)


def pages_of(section: str, present: Collection[str]) -> list[str]:
    """Return the pages of a section that are present, in its order."""
    globs = dict(SECTIONS)[section]
    found = [page for glob in globs for page in sorted(present) if fnmatchcase(page, glob)]
    return list(dict.fromkeys(found))


def compose(present: Collection[str], titles: Mapping[str, str]) -> Nav:
    """Return the navigation of these pages; one that is not in `titles` goes by its own.

    Raises:
        PageError: A page is in no section.
    """
    placed = {section: pages_of(section, present) for section, _ in SECTIONS}
    if strays := sorted(set(present).difference(*placed.values())):
        raise PageError(
            f"{', '.join('docs/' + page for page in strays)}: in no section of the navigation. "
            "Name it in SECTIONS of docs/_hooks/site_pages/navigation.py, where a reader would look for it."
        )
    nav: Nav = []
    for section, names in placed.items():
        pages: list[Page] = [{titles[name]: name} if name in titles else name for name in names]
        if pages:
            nav += [{section: pages}] if section else pages
    return nav
