"""What the documentation makes at each build: pages of commands, errors, backbones and reports, and the navigation."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class PageError(Exception):
    """The documentation and the code do not fit; the message says what to write where."""
