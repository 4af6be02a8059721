"""What command lines have in common: how a user writes out_indices, sizes, options. Standard library only."""

import argparse
import json
from typing import Any

from runtime.out_indices import OutIndices


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
    """Return `(None,)` for none, a number or several: argparse would take a bare `None` for no answer."""
    if text.lower() in ("none", "embedding"):
        return (None,)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, nor a number, nor numbers as in -2,-4") from None
    return (numbers[0] if len(numbers) == 1 and numbers[0] >= 0 else tuple(numbers),)


def image_size(text: str) -> int | tuple[int, ...] | str:
    """Return the side, the sides or `dynamic`, from 224, 224x448 or dynamic."""
    if text == "dynamic":
        return text
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither pixels, as in 224 or 224x448, nor dynamic") from None
    return sides[0] if len(sides) == 1 else sides


def option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; what is no JSON is a string."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value.lower() if value in ("True", "False", "None") else value)
    except ValueError:
        return name, value


def positive(text: str) -> int:
    """Return a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
