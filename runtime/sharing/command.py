"""Command line of `python -m runtime.pull`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from runtime.arguments import DEFAULT_ARTIFACTS, parser_of
from runtime.errors import ArtifactNotFoundError, BackboneError, OptionError
from runtime.sharing.address import Address, parse_address
from runtime.sharing.pulling import Pulled, pull_model, store_to_fill
from runtime.sharing.snapshot import Snapshot, take

EPILOG = """examples:
  python -m runtime.pull our-lab/backbones                              # every model
  python -m runtime.pull our-lab/backbones "pathology/kaiko_*"
  python -m runtime.pull our-lab/backbones@v1.2 --artifacts /data/artifacts
  python -m runtime.pull our-lab/backbones --allow-code                 # TorchScript and pt2, too

exit status: 0 everything asked for is there and verified, 1 something failed (the other models are there),
2 wrong usage, 130 interrupted (run it again to go on)."""


def parser_of_pull() -> argparse.ArgumentParser:
    """Return the parser of `python -m runtime.pull`."""
    parser = parser_of(
        "python -m runtime.pull",
        "Bring artifacts that somebody pushed to the Hugging Face hub into the local store.",
        EPILOG,
    )
    add = parser.add_argument
    add("repository", metavar="ORG/REPO", help="a repository of artifacts, with @REVISION if not its main branch")
    add("pattern", nargs="?", default="*", metavar="GLOB", help='model names, such as "pathology/*"; default: all')
    add("--revision", metavar="REV", help="branch, tag or commit; a commit makes sure that it is always the same")
    add("--artifacts", metavar="DIR", help=f"the store to write ({DEFAULT_ARTIFACTS})")
    add("--allow-code", action="store_true", help="bring TorchScript and pt2, too: programs of whoever pushed them")
    add("--json", action="store_true", help="one JSON object per model on standard output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of_pull()
    options = parser.parse_args(arguments)
    try:
        address, store = parse_address(options.repository, options.revision), store_to_fill(options.artifacts)
    except OptionError as error:
        parser.error(str(error))
    try:
        snapshot = take(address)
        if not options.json:
            print(f"{address} is at commit {snapshot.commit}.")
        failed = 0
        for model in snapshot.matching(options.pattern):
            try:
                _tell(address, pull_model(store, snapshot, model, options.allow_code), options.json)
            except BackboneError as error:
                failed += 1
                _tell_failure(snapshot, model, error, options.json)
        if not options.json:
            print(f"The store is {store.root}.")
        return 1 if failed else 0
    except BackboneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArtifactNotFoundError) else 1
    except KeyboardInterrupt:
        print("interrupted: what was published stays; run the same command to go on", file=sys.stderr)
        return 130


def _tell(address: Address, pulled: Pulled, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"repository": address.repo, **asdict(pulled), "status": pulled.status}, sort_keys=True))
        return
    size = f", {pulled.bytes / 1e6:.1f} MB fetched" if pulled.bytes else ""
    print(f"{pulled.model}: {pulled.status}{size}")
    for artifact in pulled.artifacts:
        print(f"  {artifact}")
    for artifact in pulled.left_out:
        print(f"  left out: {artifact} (a program of whoever pushed it: --allow-code brings it)")


def _tell_failure(snapshot: Snapshot, model: str, error: BackboneError, as_json: bool) -> None:
    print(f"error: {model}: {error}", file=sys.stderr)
    if as_json:
        failure = {"repository": snapshot.address.repo, "commit": snapshot.commit, "model": model}
        print(json.dumps({**failure, "status": "failed", "error": type(error).__name__, "detail": str(error)}))
