"""Command line: `python -m exporters.prune`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase

from exporters.leftovers import Pruning, Removal, decide, look, models, remove
from runtime.arguments import add_common, parser_of
from runtime.artifacts import DOWNLOADS, Store, open_store
from runtime.errors import BackboneError, OptionError, UnknownModelError
from runtime.terminal.output import complain, remark, say, say_json, size, table
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m exporters.prune --dry-run                               # what could go, and how many bytes
  python -m exporters.prune "pathology/*" --yes
  python -m exporters.prune pathology/kaiko_vits16 --remove "*.cuda.fp16.*"     # current ones, by their graphs' names

What goes: artifacts that another recipe of graphs made, files that no manifest lists (weights that nothing reads any
more), and what killed builds and abandoned pulls left. What a manifest lists and is current stays, unless --remove
names it. Models that are being built or pulled are left alone.

exit status: 0 done (also if there was nothing to remove), 1 something could not be removed or a manifest cannot be
used, 2 wrong usage or names that match nothing, 130 interrupted (run it again to go on)"""

# What is not a file of a model's folder.
_UNFINISHED = {"": "unfinished build", DOWNLOADS: "unfinished pull"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of("python -m exporters.prune", "Remove from the store what nobody needs any more.", EPILOG)
    add = parser.add_argument
    add("globs", nargs="*", default=["*"], metavar="GLOB", help="models, such as pathology/* (default: all)")
    add("--remove", action="append", default=[], metavar="GRAPH", help="remove these graphs, too: a name or glob")
    add("--dry-run", action="store_true", help="show what would be removed, remove nothing")
    add("--yes", action="store_true", help="do not ask")
    add_common(parser, "one JSON object per file", imports=False)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    store = open_store(options.artifacts)
    prunings, failed = _plan(store, options)
    found = [removal for pruning in prunings for removal in pruning.removals]
    if not options.json:
        rows = [(r.model, _UNFINISHED.get(r.name, r.name), size(r.bytes), r.reason) for r in found]
        say(table(("MODEL", "FILE", "SIZE", "WHY"), rows) if rows else "Nothing can go.")
    done: list[Removal] = []
    if found and not options.dry_run and _agreed(options, found):
        done, failures = _carry_out(store, prunings, options.remove)
        failed += failures
    _tell(found, done, options)
    return 1 if failed else 0


def _plan(store: Store, options: argparse.Namespace) -> tuple[list[Pruning], int]:
    """Return what can go of each model, and of how many models nobody can tell."""
    known = models(store)
    for glob in options.globs if options.globs != ["*"] else ():
        if not any(fnmatchcase(model, glob) for model in known):
            raise UnknownModelError(f"{store.root} has nothing of {glob!r}. It has: {', '.join(known) or 'nothing'}.")
    prunings, graphs, failed = [], set(), 0
    for model in known:
        if not any(fnmatchcase(model, glob) for glob in options.globs):
            continue
        try:
            shelf = look(store, model)
        except BackboneError as error:
            complain(error)
            failed += 1
            continue
        if shelf.busy:
            remark(f"{model} is being built or pulled now: left alone")
        graphs |= {artifact.graph.name for artifact in shelf.manifest.artifacts}
        prunings.append(decide(shelf, options.remove))
    for glob in options.remove:
        if not any(fnmatchcase(graph, glob) for graph in graphs):
            raise OptionError(f"--remove {glob!r} is no graph of these models. See python -m runtime info MODEL.")
    return prunings, failed


def _agreed(options: argparse.Namespace, found: Sequence[Removal]) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise OptionError("Nobody is there to ask: give --yes to remove it, or --dry-run to look only.")
    sys.stderr.write(f"Remove {len(found)} files, {size(sum(r.bytes for r in found))}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _carry_out(store: Store, prunings: Sequence[Pruning], named: Sequence[str]) -> tuple[list[Removal], int]:
    done: list[Removal] = []
    failed = 0
    for pruning in prunings:
        if not pruning.removals:
            continue
        try:
            remove(store, pruning, named)
            done += pruning.removals
        except BackboneError as error:
            complain(error)
            failed += 1
    return done, failed


def _tell(found: Sequence[Removal], done: Sequence[Removal], options: argparse.Namespace) -> None:
    if options.json:
        for removal in found:
            say_json({**asdict(removal), "removed": removal in done})
    elif options.dry_run:
        say(f"\n{size(sum(removal.bytes for removal in found))} would be freed; nothing was removed.")
    elif found:
        say(f"\n{size(sum(removal.bytes for removal in done))} freed.")


if __name__ == "__main__":
    sys.exit(main())
