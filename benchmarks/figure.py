"""A measured figure, as reports show it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One promise and what was measured.

    Attributes:
        name: What is measured.
        goal: The promise, in words.
        reached: Whether the measurement keeps it.
        measured: The result, in words.
        data: Every number behind it.
    """

    name: str
    goal: str
    reached: bool
    measured: str
    data: dict[str, Any]
