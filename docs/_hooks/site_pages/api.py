"""The page on the Python interface: what `runtime` offers, read from the source without importing torch."""

import ast
from pathlib import Path
from types import ModuleType

_INTRODUCTION = """\
# Python API

Everything below is imported from `runtime`; what is not here may change without notice. `import runtime` needs neither
torch nor onnxruntime: names that do are loaded on first use."""


def page(package: ModuleType) -> str:
    """Return the page of a package's public names, in their order."""
    folder = Path(str(package.__file__)).parent
    blocks = [_block(package.__name__, name, folder) for name in package.__all__]
    return "\n\n".join([_INTRODUCTION, *blocks]) + "\n"


def _block(package: str, name: str, folder: Path) -> str:
    """Return what shows one name; a function with the name of a command's file is looked up where it is defined."""
    public, origin = f"{package}.{name}", origins(folder / "__init__.py").get(name, package)
    if not (folder / f"{name}.py").is_file() or origin in (package, f"{package}.{name}"):
        return f"::: {public}"
    heading = f"    options:\n      heading: {public}\n      toc_label: {name}"
    return f'<a id="{public}"></a>\n\n::: {origin}.{name}\n{heading}'


def origins(source: Path) -> dict[str, str]:
    """Return which module each name of a package's `__init__` is imported from."""
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}
