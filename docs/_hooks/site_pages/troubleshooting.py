"""The page on errors: what docs/troubleshooting.md says, completed by what runtime/errors.py declares."""

import inspect
import re
from types import ModuleType

from site_pages import PageError

TREE = "<!-- the tree of runtime.errors -->"
_HEADING = re.compile(r"^## (\w+)$", re.MULTILINE)
_KIND = re.compile(r"(Error|Warning)$")


def declared(errors: ModuleType) -> dict[str, type[BaseException]]:
    """Return the classes that the module of errors declares, in its order."""
    return {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }


def complete(markdown: str, errors: ModuleType) -> str:
    """Return the page with the tree drawn, and below the heading of each class what it is.

    Raises:
        PageError: A class has no heading, or a heading no class.
    """
    kinds = declared(errors)
    headings = _HEADING.findall(markdown)
    _check(set(kinds), [heading for heading in headings if _KIND.search(heading)])
    completed = _HEADING.sub(lambda found: _heading(kinds, found[1]), markdown)
    return completed.replace(TREE, f"```text\n{_tree(errors)}\n```")


def _check(kinds: set[str], headings: list[str]) -> None:
    if missing := sorted(kinds.difference(headings)):
        raise PageError(
            f"docs/troubleshooting.md has no section on {', '.join(missing)}: add '## {missing[0]}' with what causes "
            "it and what to do."
        )
    if unknown := sorted(set(headings).difference(kinds)):
        raise PageError(f"docs/troubleshooting.md speaks of {', '.join(unknown)}, which runtime/errors.py has not.")


def _heading(kinds: dict[str, type[BaseException]], name: str) -> str:
    if name not in kinds:
        return f"## {name}"
    kind = kinds[name]
    bases = " and ".join(
        f"[{b.__name__}](#{b.__name__})" if b.__name__ in kinds else f"`{b.__name__}`" for b in kind.__bases__
    )
    return f"## {name} {{#{name}}}\n\n*{inspect.getdoc(kind)}* A kind of {bases}."


def _tree(errors: ModuleType) -> str:
    """Return the drawing in the module's docstring: its indented block."""
    lines = (errors.__doc__ or "").splitlines()
    drawn = [line[4:] for line in lines if line.startswith("    ") or not line]
    return "\n".join(drawn).strip("\n")
