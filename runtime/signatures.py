"""The parameters of a function known by its dotted path, read off its source file: nothing is imported for it."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, cast

from runtime.errors import RegistrationError


class Unknown:
    """Default of a parameter whose value only the function's own module could tell."""

    def __repr__(self) -> str:
        return "..."


def resolve(name: str, path: str) -> Callable[..., Any]:
    """Import and return the function at `path`, for the backbone `name`.

    Raises:
        RegistrationError: There is no such module or function, or it fails to import.
    """
    module, attribute = split(path)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything
        raise RegistrationError(
            f"{name!r}: the function {path!r} cannot be imported: {type(error).__name__}: {error}. Write it as "
            "'package.module:function', of a module that Python finds from where it runs (PYTHONPATH, or an installed "
            "package)."
        ) from error
    if not callable(found):
        raise RegistrationError(
            f"{name!r}: {path!r} is a {type(found).__name__}, not a function that returns a module."
        )
    return cast(Callable[..., Any], found)


def split(path: str) -> tuple[str, str]:
    """Return module and attribute of `package.module:function` or `package.module.function`."""
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    return module, attribute


@cache
def signature(name: str, path: str) -> inspect.Signature:
    """Return the parameters of the function at `path`: from its source, else by importing it."""
    module, attribute = split(path)
    if module not in sys.modules and (file := _source(module)) is not None:
        body = ast.parse(file.read_bytes()).body
        if (definition := _definition(body, attribute)) is not None:
            return _read(definition)
    return inspect.signature(resolve(name, path))


def _source(module: str) -> Path | None:
    """Return the file of `module` without importing the packages it lies in, as importlib's own search would."""
    locations, name, origin = None, "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, locations)
        if spec is None:
            return None
        locations, origin = spec.submodule_search_locations, spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _definition(body: list[ast.stmt], name: str) -> ast.FunctionDef | None:
    for statement in body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            made = _definition(statement.body, "__init__")
            if made is not None:
                made.args.args = made.args.args[1:]  # self
            return made
    return None


def _read(definition: ast.FunctionDef) -> inspect.Signature:
    given = definition.args
    positional = given.posonlyargs + given.args
    defaults: list[Any] = [inspect.Parameter.empty] * (len(positional) - len(given.defaults))
    defaults += [_value(node) for node in given.defaults]
    named = list(zip(positional, defaults, strict=True))
    only = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    named += [(arg, inspect.Parameter.empty if node is None else _value(node)) for arg, node in only]
    return inspect.Signature(
        [inspect.Parameter(arg.arg, inspect.Parameter.KEYWORD_ONLY, default=default) for arg, default in named]
    )


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Unknown()
