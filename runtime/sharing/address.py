"""Where shared artifacts are: `hf://ORG/REPO@REVISION`. Standard library only."""

import os
import re
from dataclasses import dataclass
from typing import Any

from runtime.errors import OptionError

_PREFIX = re.compile(r"hf:/+")  # pathlib makes hf:/ of hf://
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What git takes for the name of a branch or tag, but for what could lead out of a folder.
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w./+-]*")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A repository of artifacts, at a branch, tag or commit; `None` is its main branch.

    Raises:
        OptionError: No repository or revision can be named so.
    """

    repo: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo) or ".." in self.repo:
            raise OptionError(f"{self.repo!r} is no repository of the Hugging Face hub: they are named ORG/REPO.")
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise OptionError(f"{self.revision!r} is no revision of {self.repo}: name a branch, a tag or a commit.")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def folder(self) -> str:
        """The repository's name as that of one folder."""
        return self.repo.replace("/", "--")

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(artifacts: str | os.PathLike[str] | None) -> bool:
    """Return whether `artifacts` names a repository of the hub, not a folder."""
    return artifacts is not None and _PREFIX.match(os.fspath(artifacts)) is not None


def parse_address(text: Any, revision: str | None = None) -> Address:
    """Return the address that is written as `ORG/REPO`, `ORG/REPO@REVISION`, or either with `hf://` before it.

    Raises:
        OptionError: It names no repository, or two revisions.
    """
    repo, _, named = _PREFIX.sub("", os.fspath(text), count=1).partition("@")
    if named and revision and named != revision:
        raise OptionError(f"{text} names the revision {named!r}, and {revision!r} was given, too: leave one out.")
    return Address(repo, named or revision or None)
