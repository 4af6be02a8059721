"""What an output folder was begun with, and whether a run may go on in it. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runtime.errors import OutputError

SCHEMA = 1
Mode = Literal["new", "resume", "overwrite"]


@dataclass(frozen=True)
class Record:
    """What `_embed.json` says.

    Attributes:
        asked: What decides the rows: model, outputs, weights, the input's fingerprint, ... A run goes on in a folder
            only where all of it is the same.
        made: What else was so when it was begun: backend, artifact, versions, the path of the input.
        runs: When each run began or went on, on which backend, device and versions.
    """

    asked: Mapping[str, Any]
    made: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]] = ()

    def followed_by(self, record: "Record") -> "Record":
        """Return this record with the runs of another that goes on where this one ended."""
        return replace(self, runs=(*self.runs, *record.runs))

    def to_text(self) -> str:
        """Return the record as the file holds it."""
        data = {"schema": SCHEMA, "asked": self.asked, "made": self.made, "runs": list(self.runs)}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str, path: Path) -> "Record":
        """Return the record in a file.

        Raises:
            OutputError: It is none, or a newer release wrote it.
        """
        try:
            data = json.loads(text)
            schema, asked, made = data["schema"], dict(data["asked"]), dict(data["made"])
            runs = tuple(map(dict, data.get("runs", ())))
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is damaged: {error!r}. Begin again with --overwrite, or choose another folder."
            ) from error
        if schema != SCHEMA:
            raise OutputError(
                f"{path} has schema {schema}, this release reads {SCHEMA}. Go on with the release that began it, begin "
                "again with --overwrite, or choose another folder."
            )
        return cls(asked, made, runs)


@dataclass(frozen=True)
class Found:
    """What lies in an output folder.

    Attributes:
        record: What it was begun with.
        parts: How many parts were published.
        foreign: Names of what no run has put there.
    """

    record: Record | None
    parts: int
    foreign: Sequence[str]


def decide(folder: Path, found: Found, asked: Record, mode: Mode) -> Literal["begin", "continue"]:
    """Return whether to begin in a folder, emptying it first, or to go on in it.

    Raises:
        OutputError: Neither: it holds what is not ours, another model's rows, or rows that nobody said what to do with.
    """
    if found.record is None and found.foreign:
        raise OutputError(
            f"{folder} holds what no run of embed has put there: {_some(found.foreign)}. Choose another folder."
        )
    if mode == "overwrite" or (found.record is None and not found.parts):
        return "begin"
    if found.record is None:
        raise OutputError(
            f"{folder} holds {found.parts} parts and no _embed.json that says of what. Begin again with --overwrite, "
            "or choose another folder."
        )
    different = differences(found.record.asked, asked.asked)
    if different:
        raise OutputError(
            f"{folder} was begun with something else: {'; '.join(different)}. Choose another folder, or discard what "
            "it holds with --overwrite."
        )
    if mode == "resume":
        return "continue"
    raise OutputError(
        f"{folder} already holds {found.parts} parts of this very run. Go on with --resume, or begin again with "
        "--overwrite (in Python: resume=True, overwrite=True)."
    )


def differences(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return what differs between two records, in words."""
    told = json.loads(json.dumps(asked))  # tuples become lists, as in the file
    names = sorted(set(begun) | set(told))
    return [_difference(name, begun.get(name), told.get(name)) for name in names if begun.get(name) != told.get(name)]


def _difference(name: str, begun: Any, asked: Any) -> str:
    if name == "fingerprint":
        return "the input is another one: files of other names, or other columns, or slides cut in another way"
    if name == "rows_of_pieces":
        return "the input holds more or fewer tiles than it did, and each has its place among the feature maps"
    return f"{name} was {json.dumps(begun)}, and is now {json.dumps(asked)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
