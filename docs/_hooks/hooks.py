"""What mkdocs calls while it builds the site; the work is done in site_pages."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import runtime
from runtime import errors
from site_pages import ROOT, PageError, api, commands, included, matrix, navigation, troubleshooting
from site_pages.links import Links

# A file of the site: its place in the repository, for those that are included from outside docs/.
_SOURCES = {place: source for source, place in included.places().items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are included and generated, and arrange all of them."""
    try:
        for place, source in _SOURCES.items():
            files.append(_included(config, source, place))
        for place, text in _generated(files).items():
            if (shorter := files.get_file_from_path(place)) is not None:
                files.remove(shorter)
            files.append(File.generated(config, place, content=text))
        titles = {"index.md": "Home"} | included.labels(_texts(files, "reports/"))
        config.nav = navigation.compose([file.src_uri for file in files.documentation_pages()], titles)
    except PageError as error:
        raise PluginError(str(error)) from error
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Complete a page, and turn links of the repository into links of the site."""
    place = page.file.src_uri
    if place == "troubleshooting.md":
        try:
            markdown = troubleshooting.complete(markdown, errors)
        except PageError as error:
            raise PluginError(str(error)) from error
    if page.file.generated_by and place not in _SOURCES:
        return markdown
    links = Links(_places(files), config.extra["repository"])
    return links.rewrite(markdown, _SOURCES.get(place, f"docs/{place}"), place)


def _included(config: MkDocsConfig, source: str, place: str) -> File:
    if source.endswith(".md"):
        return File.generated(config, place, content=included.markdown_of(source))
    return File.generated(config, place, abs_src_path=str(ROOT / source))


def _texts(files: Files, start: str = "") -> dict[str, str]:
    """Return the Markdown of the pages whose places begin so, in the order of their names."""
    pages = sorted(files.documentation_pages(), key=lambda file: file.src_uri)
    return {file.src_uri: file.content_string for file in pages if file.src_uri.startswith(start)}


def _generated(files: Files) -> dict[str, str]:
    """Return the generated pages, by their places in the site."""
    written = _texts(files)
    tasks = navigation.pages_of("How-to", written)
    return {
        "how-to.md": included.how_to_page({place: written[place] for place in tasks}),
        "reports/index.md": included.reports_page(_texts(files, "reports/")),
        "commands.md": commands.page(commands.commands()),
        "api.md": api.page(runtime),
        matrix.PAGE: matrix.page(),
    }


def _places(files: Files) -> dict[str, str]:
    """Return where each file of the repository that is in the site is, folders with a page of their own included."""
    ours = {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in _SOURCES}
    return {**ours, **included.places(), f"{included.REPORTS}/": "reports/index.md"}
