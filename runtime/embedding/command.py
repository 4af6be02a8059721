"""Command line: `python -m runtime.embed`."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from runtime.arguments import import_modules, join_negative
from runtime.embedding import display
from runtime.embedding.arguments import parser_of_embed
from runtime.embedding.run import embed
from runtime.embedding.summary import Summary
from runtime.errors import BackboneError, DependencyError, OptionError, OutIndicesError, UnknownModelError

# Mistakes in what was typed, or a package to install: before anything has begun.
WRONG_USAGE = (DependencyError, OptionError, OutIndicesError, UnknownModelError)
# What the command has beside the keywords of `runtime.embed`.
OWN = ("model", "images", "allow_unreadable", "json", "option", "imports", "out_indices")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        _say("interrupted: what was published stays; run the same command with --resume to go on")
        return 130


def _run(arguments: list[str]) -> int:
    parser = parser_of_embed()
    options, further = parser.parse_known_args(join_negative(arguments))
    if further:
        parser.error(_not_understood(further))
    try:
        keywords = _keywords(options)
        with display.shown(display.console()) as progress:
            summary: Summary = embed(options.model, options.images, progress=progress, **keywords)
    except WRONG_USAGE as error:
        parser.error(str(error))
    except BackboneError as error:
        _say(f"error: {error}")
        return 1
    return _report(summary, options)


def _not_understood(further: list[str]) -> str:
    """Return what is wrong with arguments that are left over: mostly names of files, which the shell made of a glob."""
    if any(one.startswith("-") for one in further):
        return f"unrecognized arguments: {' '.join(further)}"
    return (
        f"one INPUT is taken, and {len(further) + 1:,} were given, such as {further[0]}: quote the glob, as in "
        "'tiles/*.jpg', so that the shell does not expand it, or name the folder."
    )


def _keywords(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `runtime.embed` that were given."""
    import_modules(options.imports)
    given = {name: value for name, value in vars(options).items() if name not in OWN and value is not None}
    (given["out_indices"],) = options.out_indices
    if twice := [name for name, _ in options.option if name in given]:
        raise OptionError(
            f"--option {twice[0]}=...: {twice[0]} has an option of its own, --{twice[0].replace('_', '-')}."
        )
    return given | dict(options.option)


def _report(summary: Summary, options: argparse.Namespace) -> int:
    if options.json:
        sys.stdout.write(json.dumps(summary.to_json(), sort_keys=True) + "\n")
    else:
        _say(display.text(summary))
    if not summary.rows and not summary.unreadable:
        _say("warning: nothing was embedded: no slide of the input has tissue, or no Parquet file a row")
    return 1 if summary.unreadable > options.allow_unreadable else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
