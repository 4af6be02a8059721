"""The commands of the project, found in the code, and the page that shows the help of each."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from site_pages import ROOT, PageError

# In the order in which a user meets them.
PACKAGES = ("runtime", "exporters", "benchmarks")
WIDTH = 100


@dataclass(frozen=True)
class Command:
    """A command line and what its `--help` says; `names` are those of the wheel's console scripts."""

    words: str
    help: str
    names: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Where the page has it: `exporters-build`."""
        return re.sub(r"[^a-z0-9]+", "-", self.words.lower())


def modules(root: Path = ROOT) -> list[str]:
    """Return the modules that are commands: `python -m MODULE` works and is meant for people."""
    return [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__main__")
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if path.name == "__main__.py" or _is_command(path)
    ]


def _is_command(path: Path) -> bool:
    """Return whether a file runs as a command; one whose guard reads sys.argv is the body of a child process."""
    source = path.read_text(encoding="utf-8")
    if "__main__" not in source:
        return False
    guards = [node for node in ast.parse(source).body if isinstance(node, ast.If) and _is_guard(node.test)]
    return any("sys.argv" not in ast.unparse(guard) for guard in guards)


def _is_guard(test: ast.expr) -> bool:
    return ast.unparse(test) in ("__name__ == '__main__'", "'__main__' == __name__")


def scripts(root: Path = ROOT) -> dict[str, str]:
    """Return the console scripts of the wheel: the module that holds their function, by name."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: entry.partition(":")[0] for name, entry in project.get("scripts", {}).items()}


def commands(root: Path = ROOT) -> list[Command]:
    """Return every command with its help, subcommands after their command.

    Raises:
        PageError: `--help` of one does not work.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda module: _with_subcommands(module, root), modules(root)))
    return [command for several in found for command in several]


def _with_subcommands(module: str, root: Path) -> list[Command]:
    names = tuple(name for name, target in scripts(root).items() if _serves(target, module, root))
    command = Command(module, help_of(module, (), root), names)
    below = [Command(f"{module} {word}", help_of(module, (word,), root)) for word in subcommands(command.help)]
    return [command, *(sub for sub in below if sub.help != command.help)]


def _serves(target: str, module: str, root: Path) -> bool:
    """Return whether a script's module is this command's: the very one, or the one whose `main` its file imports."""
    path = root / module.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    imports = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    mains = {node.module for node in imports if "main" in [name.name for name in node.names]}
    return target in (module, f"{module}.__main__", *mains)


def help_of(module: str, words: Sequence[str] = (), root: Path = ROOT) -> str:
    """Return what `python -m MODULE WORDS --help` prints.

    Raises:
        PageError: It fails, or prints no usage.
    """
    told = subprocess.run(
        [sys.executable, "-m", module, *words, "--help"],
        cwd=root,
        env={**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if told.returncode != 0 or not told.stdout.startswith("usage: "):
        said = (told.stderr or told.stdout).strip()[-500:]
        raise PageError(f"python -m {' '.join((module, *words))} --help: exit status {told.returncode}: {said}")
    return told.stdout.rstrip()


def subcommands(help_text: str) -> list[str]:
    """Return the subcommands that a help names: `{list,info}`, or `COMMAND  one of list, info`."""
    section = re.search(r"^positional arguments:\n((?:  .*\n|\n)*)", help_text + "\n", re.MULTILINE)
    choices = section and re.search(r"^  (?:\{([\w,-]+)\}|COMMAND +one of ([\w, -]+))$", section[1], re.MULTILINE)
    return re.split(", ?", choices[1] or choices[2]) if choices else []


def page(found: Sequence[Command]) -> str:
    """Return the page of these commands."""
    lines = ["# Commands", "", _INTRODUCTION, ""]
    for package in PACKAGES:
        mine = [command for command in found if command.words.split()[0].split(".")[0] == package]
        if mine:
            lines += [f"## {package}: {_PURPOSE[package]}", "", *(line for one in mine for line in _section(one))]
    return "\n".join(lines) + "\n"


def _section(command: Command) -> list[str]:
    also = f"In an installed wheel also {', '.join(f'`{name}`' for name in command.names)}." if command.names else ""
    heading = f"### python -m {command.words} {{#{command.anchor}}}"
    return [heading, "", *([also, ""] if also else []), "```text", command.help, "```", ""]


_INTRODUCTION = """\
What `--help` of every command says. Where nothing else is said, the exit status is 0 when everything asked for was
done, 1 when something failed, 2 for wrong usage and 130 when interrupted; errors are lines on standard error,
`error: ...`; after wrong usage they follow the usage."""

_PURPOSE: Mapping[str, str] = {
    "runtime": "use backbones",
    "exporters": "build, verify and share artifacts",
    "benchmarks": "measure (in a checkout only)",
}
