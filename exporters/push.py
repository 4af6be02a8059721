"""Command line: `python -m exporters.push`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import json
import sys
from collections.abc import Sequence

from exporters.push_plan import Plan, Push, plan
from exporters.pushing import Pushed, carry_out, find_models
from exporters.redistribution import restricted
from runtime.arguments import DEFAULT_ARTIFACTS, parser_of
from runtime.artifacts import open_store
from runtime.errors import ArtifactNotFoundError, BackboneError, OptionError
from runtime.sharing.address import parse_address

EPILOG = """examples:
  python -m exporters.push our-lab/backbones                            # every model of the store
  python -m exporters.push our-lab/backbones "pathology/*" --private --dry-run
  python -m exporters.push our-lab/backbones --branch next --message "Built with torch 2.15"
  python -m exporters.push someone/backbones pathology/kaiko_vits16 --create-pr

exit status: 0 the repository holds what the store holds, 1 something failed (nothing was pushed), 2 wrong usage or a
name that matches nothing, 130 interrupted (nothing was pushed, but what was sent need not be sent again)."""


def parser_of_push() -> argparse.ArgumentParser:
    """Return the parser of `python -m exporters.push`."""
    parser = parser_of(
        "python -m exporters.push",
        "Share built artifacts in a repository of the Hugging Face hub. Log in with `hf auth login` first.",
        EPILOG,
    )
    add = parser.add_argument
    add("repository", metavar="ORG/REPO", help="where to; it is made if it does not exist")
    add("pattern", nargs="?", default="*", metavar="GLOB", help='model names, such as "pathology/*"; default: all')
    add("--artifacts", metavar="DIR", help=f"the store to read ({DEFAULT_ARTIFACTS})")
    add("--branch", "--revision", metavar="NAME", help="the branch to change, made if there is none (default: main)")
    add("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    add("--private", action="store_true", help="make a new repository private")
    add(
        "--redistribution-allowed",
        action="store_true",
        help="the publishers of gated or restricted weights have permitted you to make them public",
    )
    add("--message", metavar="TEXT", help="of the commit")
    add("--dry-run", action="store_true", help="say what would be pushed; nothing is changed")
    add("--json", action="store_true", help="one JSON object on standard output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of_push()
    options = parser.parse_args(arguments)
    if options.create_pr and options.branch:
        parser.error("--create-pr is made against the main branch: leave --branch out")
    try:
        push = _push(options)
    except (OptionError, ArtifactNotFoundError) as error:
        parser.error(str(error))
    try:
        planned = plan(push)
        done = None if options.dry_run else carry_out(push, planned)
    except BackboneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was pushed; run the same command to go on", file=sys.stderr)
        return 130
    (_tell_machines if options.json else _tell)(push, planned, done)
    return 0


def _push(options: argparse.Namespace) -> Push:
    store = open_store(options.artifacts)
    return Push(
        store,
        find_models(store, options.pattern),
        parse_address(options.repository, options.branch),
        create_pr=options.create_pr,
        private=options.private,
        allowed=options.redistribution_allowed,
        message=options.message,
    )


def _tell(push: Push, planned: Plan, done: Pushed | None) -> None:
    for note in _notes(push, planned):
        print(f"note: {note}")
    would = "would be " if done is None else ""
    for path, file in planned.uploads.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        print(f"  {path}: {would}sent, {size / 1e6:.2f} MB")
    for path in planned.deletions:
        print(f"  {path}: {would}removed, no manifest lists it any more")
    if not planned.changes:
        print(f"{push.address} is up to date.")
    elif done is None:
        print(f"Nothing was pushed: without --dry-run {planned.bytes / 1e6:.1f} MB go to {push.address}.")
    else:
        where = done.pull_request or f"{push.address}, commit {done.commit}"
        print(f"Pushed {planned.bytes / 1e6:.1f} MB: {where}.")
        print(f"Next: python -m runtime.pull {push.address.repo}@{done.commit}")


def _tell_machines(push: Push, planned: Plan, done: Pushed | None) -> None:
    told = {
        "repository": push.address.repo,
        "branch": push.address.revision or "main",
        "private": planned.private,
        "models": list(push.models),
        "uploads": list(planned.uploads),
        "deletions": list(planned.deletions),
        "bytes": planned.bytes,
        "notes": _notes(push, planned),
        "status": "would push" if done is None and planned.changes else "pushed" if planned.changes else "up to date",
        "commit": done.commit if done else planned.base.commit if planned.base else None,
        "pull_request": done.pull_request if done else None,
    }
    print(json.dumps(told, sort_keys=True))


def _notes(push: Push, planned: Plan) -> list[str]:
    notes = list(planned.notes)
    for line in restricted(planned.local):
        kept = "keep the repository private" if planned.private else "you said that its publisher permits it"
        notes.append(f"{line}: {kept}.")
    made = "private" if planned.private else "public"
    return [
        *notes,
        *([f"{push.address.repo} does not exist yet: a {made} one is made."] if planned.base is None else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
