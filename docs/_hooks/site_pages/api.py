"""The page on the Python interface: what `runtime` offers, read from the source without importing torch."""

from types import ModuleType

_INTRODUCTION = """\
# Python API

Everything below is imported from `runtime`; what is not here may change without notice. `import runtime` needs neither
torch nor onnxruntime: names that do are loaded on first use."""


def page(package: ModuleType) -> str:
    """Return the page of a package's public names, in their order."""
    blocks = [f"::: {package.__name__}.{name}" for name in package.__all__]
    return "\n\n".join([_INTRODUCTION, *blocks]) + "\n"
