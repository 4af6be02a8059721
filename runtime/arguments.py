"""What command lines have in common: shared arguments, and how a user writes out_indices, sizes and options."""

import argparse
import json
import math
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import BackboneError, DeviceError, OptionError
from runtime.out_indices import OutIndices
from runtime.providers import parse_device

# What --artifacts is when it is not given; see default_root().
DEFAULT_ARTIFACTS = "default: $BACKBONE_ARTIFACTS, else artifacts/ of the checkout, else the user's data folder"


class _Parser(argparse.ArgumentParser):
    """A parser that names the options near to one that it does not know."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 2."""
        if message.startswith("unrecognized arguments: "):
            near = [one for word in message.split() if word.startswith("--") for one in self._near(word)]
            message += f". Near: {', '.join(dict.fromkeys(near))}" if near else ""
        super().error(message)

    def _near(self, word: str) -> list[str]:
        name, known = word.partition("=")[0], list(self._option_string_actions)
        return [option for option in known if option.startswith(name)] or get_close_matches(name, known)


def parser_of(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command, such as `python -m runtime list`; its help ends with `epilog` as it is.

    Options are spelt out: as an abbreviation `--out` would silently be `--out-indices` of a build.
    """
    return _Parser(
        prog=command,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_common(parser: argparse.ArgumentParser, json_help: str, *, imports: bool = True) -> None:
    """Add --artifacts and --json; and --import for commands that look names up in the registry."""
    add = parser.add_argument
    add("--artifacts", metavar="DIR", help=f"folder of artifacts ({DEFAULT_ARTIFACTS})")
    if imports:
        add("--import", action="append", default=[], dest="imports", metavar="MODULE", help="registers more backbones")
    add("--json", action="store_true", help=json_help)


def import_modules(names: list[str]) -> None:
    """Import what registers further backbones.

    Modules are looked for where the command runs, too: `python -m` does so, an installed command does not by itself.

    Raises:
        OptionError: There is no such module, or it cannot be imported.
    """
    if names and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            import_module(name)
        except BackboneError:
            raise
        except Exception as error:  # whatever a user's module raises
            told = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise OptionError(
                f"{name!r}, to register more backbones: {told}. Name a module that lies where you run this, or on "
                "PYTHONPATH."
            ) from error


def device(text: str) -> str:
    """Return a device as it was spelt: `cpu`, `cuda` or `cuda:1`."""
    try:
        parse_device(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def join_negative(arguments: list[str]) -> list[str]:
    """Let `--out-indices -2,-4` be written with a space: argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--out-indices":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def out_indices(text: str) -> tuple[OutIndices]:
    """Return what `none`, `2` or `-2,-4` ask for, in a tuple of one: argparse takes None for nothing given."""
    if text.lower() in ("none", "embedding"):
        return (None,)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, nor a number, nor numbers as in -2,-4") from None
    return (numbers[0] if len(numbers) == 1 and numbers[0] >= 0 else tuple(numbers),)


def image_size(text: str) -> int | tuple[int, ...] | str:
    """Return what `224`, `224x448` or `dynamic` ask for."""
    if text == "dynamic":
        return text
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither pixels, as in 224 or 224x448, nor dynamic") from None
    return sides[0] if len(sides) == 1 else sides


def option(text: str) -> tuple[str, Any]:
    """Return name and value of `NAME=VALUE`; a value that is JSON (or Python's True, False, None) is read as such."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value.lower() if value in ("True", "False", "None") else value)
    except ValueError:
        return name, value


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def above_zero(text: str) -> float:
    """Return a number above 0, such as 0.5."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
