"""The commands in the documentation: each is found by itself, and what the pages tell to type exists."""

import ast
import re
from pathlib import Path

import pytest
from built_site import ROOT

from site_pages import PageError, commands
from site_pages.commands import Command

GUARD = 'if __name__ == "__main__":\n    '
PARSER = """
import argparse
import sys


def main():
    parser = argparse.ArgumentParser(prog="python -m {0}")
    parser.add_argument("--json", action="store_true")
    {1}
    parser.parse_args()


"""
SUBCOMMANDS = """several = parser.add_subparsers()
    several.add_parser("list").add_argument("--glob")
    several.add_parser("info")"""
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(r"python -m ((?:runtime|exporters|benchmarks)[\w.]*)((?: (?!#)(?:'[^']*'|\"[^\"]*\"|[^\s;|&])+)*)")


@pytest.fixture(scope="module")
def found() -> dict[str, Command]:
    return {command.words: command for command in commands.commands()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one command of each kind, and what only looks like one."""
    for package in commands.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()  # before any other package of the name
    files = {
        "runtime/__main__.py": PARSER.format("runtime", SUBCOMMANDS) + "main()\n",
        "runtime/embed.py": f"from embedding.command import main\n\n{GUARD}main()\n",
        "exporters/push.py": PARSER.format("exporters.push", "") + GUARD + "sys.exit(main())\n",
        "exporters/child.py": f"import sys\n\n{GUARD}print(sys.argv[1])\n",
        "exporters/plain.py": 'NAME = "__main__"\n',
        "benchmarks/silent.py": f"{GUARD}print('no help')\n",
        "embedding/command.py": PARSER.format("runtime.embed", ""),
        "pyproject.toml": "[project]\nscripts = {embed = 'embedding.command:main', push = 'exporters.push:main'}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_new_command_is_found_by_its_guard(project: Path) -> None:
    assert commands.modules(project) == ["runtime", "runtime.embed", "exporters.push", "benchmarks.silent"]


def test_a_command_is_told_with_its_subcommands_and_its_names_in_the_wheel(project: Path) -> None:
    (project / "benchmarks" / "silent.py").unlink()

    found = commands.commands(project)

    assert [(command.words, command.names) for command in found] == [
        ("runtime", ()),
        ("runtime list", ()),
        ("runtime info", ()),
        ("runtime.embed", ("embed",)),
        ("exporters.push", ("push",)),
    ]
    assert "--glob" in found[1].help
    page = commands.page(found)
    assert "### python -m runtime list {#runtime-list}" in page
    assert "In an installed wheel also `push`." in page
    assert "## benchmarks" not in page


def test_a_command_without_help_fails_the_build(project: Path) -> None:
    with pytest.raises(PageError, match=r"python -m benchmarks\.silent --help: exit status 0: no help"):
        commands.commands(project)


def test_choices_of_an_option_are_no_subcommands() -> None:
    told = "usage: x\n\npositional arguments:\n  name  {a,b}\n\noptions:\n  {c,d}\n"

    assert commands.subcommands(told) == []
    assert commands.subcommands("positional arguments:\n  {list,in-fo}\n    list  all") == ["list", "in-fo"]
    assert commands.subcommands("positional arguments:\n  COMMAND   one of list, info\n") == ["list", "info"]
    assert commands.subcommands("positional arguments:\n  MODEL   one of many\n") == []


def test_the_known_commands_of_the_project_are_found(found: dict[str, Command]) -> None:
    assert {"exporters.build", "exporters.timm_table", "benchmarks.run", "benchmarks.compare"} <= set(found)
    assert not {"benchmarks.peers", "benchmarks.cold_start"} & set(found)  # bodies of child processes
    for words, command in found.items():
        assert command.help.startswith("usage: "), words


def test_every_file_with_a_guard_is_a_command_or_the_body_of_a_child_process(found: dict[str, Command]) -> None:
    files = [path for package in commands.PACKAGES for path in (ROOT / package).rglob("*.py")]
    guarded = {path for path in files if re.search("^if __name__ == ", path.read_text(), re.MULTILINE)}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in guarded}

    missing = modules - {command.split()[0] for command in found}

    for module in missing:
        guard = (ROOT / f"{module.replace('.', '/')}.py").read_text().partition("\nif __name__ == ")[2]
        assert "sys.argv[1]" in guard, module


def typed(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of this project that a page tells to type: module, and options."""
    blocks = [body.replace("\\\n", " ") for _, _, body in FENCE.findall(page.read_text())]
    calls = [call for body in blocks for call in OURS.findall(body)]
    return [(module, re.findall(r"(?<=\s)--[a-z][\w-]*", words)) for module, words in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_tells_to_type_exists(page: Path, found: dict[str, Command]) -> None:
    for module, options in typed(page):
        helps = [c.help for words, c in found.items() if words.split()[0] == module]
        assert helps, f"{page.name}: python -m {module} is no command"
        known = {option for text in helps for option in re.findall(r"--[a-z][\w-]*", text)}
        assert set(options) <= known, f"{page.name}: python -m {module}: {set(options) - known}"


def test_the_pages_do_tell_commands() -> None:
    assert ("exporters.build", ["--all", "--dry-run"]) in typed(ROOT / "README.md")
    assert sum(len(typed(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_can_be_parsed(page: Path) -> None:
    for indent, language, body in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(re.sub(f"^{indent}", "", body, flags=re.MULTILINE), page.name)
