"""Command line: `python -m exporters.verify`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import sys
from collections.abc import Sequence

from exporters.plan import Outcome
from exporters.variants import Published, compare_hashes, matching, plan_jobs, read
from runtime.arguments import above_zero, add_common, device, import_modules, parser_of
from runtime.artifacts import Store, open_store
from runtime.errors import DeviceError, OptionError
from runtime.machine import installed, nvidia_driver
from runtime.providers import NO_DRIVER, parse_device
from runtime.terminal.output import complain, say, say_json, size, table
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m exporters.verify                                  # everything published, as its build verified it
  python -m exporters.verify "pathology/*" --device cuda      # on this machine's GPU
  python -m exporters.verify --hash                           # only the SHA-256 of every file: no torch, no images

Each artifact is served as load_model would serve it and compared with eager PyTorch, by every backend that may serve
it, under the limits of the build. Nothing is changed.

exit status: 0 everything that could be tried here passed, 1 something failed or nothing could be tried, 2 wrong usage
or nothing is published under the names, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of("python -m exporters.verify", "Verify published artifacts again, on this machine.", EPILOG)
    add = parser.add_argument
    add("globs", nargs="*", default=["*"], metavar="GLOB", help="published models, such as pathology/* (default: all)")
    add("--hash", action="store_true", help="only compare the SHA-256 of every file with the manifest")
    add("--device", type=device, metavar="DEVICE", help="cpu, cuda or cuda:1; default: what each was made for")
    add("--checkpoint-path", metavar="FILE", help="what the artifacts of a local checkpoint were built from")
    add("--timeout", type=above_zero, metavar="SECONDS", help="kill the verification of a variant that takes longer")
    add_common(parser, "one JSON object per artifact")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import_modules(options.imports)
    store = open_store(options.artifacts)
    found, broken = read(store, matching(store, options.globs))
    for error in broken:
        complain(error)
    outcomes = compare_hashes(store, found) if options.hash else _verify(store, found, options)
    _report(outcomes, options.json)
    if not broken and not any(outcome.status in ("verified", "failed") for outcome in outcomes):
        complain("nothing could be verified here")
        return 1
    return 1 if broken or any(outcome.status == "failed" for outcome in outcomes) else 0


def _verify(store: Store, found: Sequence[Published], options: argparse.Namespace) -> list[Outcome]:
    if missing := [package for package in ("torch", "timm", "safetensors", "rich") if not installed(package)]:
        raise OptionError(
            f"Comparing with eager PyTorch needs {', '.join(missing)}: pip install 'backbone-runtime[export]'. "
            "Without, --hash compares the files with their manifests."
        )
    if parse_device(options.device)[0] == "cuda" and not nvidia_driver():
        raise DeviceError(f"--device {options.device}: {NO_DRIVER}.")
    from exporters import display, workers

    jobs, outcomes = plan_jobs(
        store, found, device=options.device, checkpoint_path=options.checkpoint_path, imports=tuple(options.imports)
    )
    with display.observer(len(jobs)) as observer:
        return outcomes + workers.run(jobs, observer, timeout=options.timeout)


_HEADERS = ("MODEL", "OUTPUTS", "FORM", "STATUS", "MIN COSINE", "MAX DIFF", "REL RMS", "SIZE", "NOTE")


def _report(outcomes: Sequence[Outcome], as_json: bool) -> None:
    if as_json:
        for outcome in outcomes:
            say_json(outcome.to_json())
        return
    say(table(_HEADERS, map(_row, outcomes)))
    for outcome in outcomes:
        if outcome.status == "failed" and outcome.detail:
            say(f"\n{outcome.model} [{outcome.variant}] {outcome.form}:\n{outcome.detail}".rstrip())
    counts = {status: sum(o.status == status for o in outcomes) for status in ("verified", "skipped", "failed")}
    say("\n" + ", ".join(f"{count} {status}" for status, count in counts.items() if count))


def _row(outcome: Outcome) -> tuple[str, ...]:
    return (
        outcome.model,
        outcome.variant,
        str(outcome.form),
        outcome.status,
        "" if outcome.min_cosine is None else f"{outcome.min_cosine:.9f}",
        "" if outcome.max_abs is None else f"{outcome.max_abs:.2g}",
        "" if outcome.relative_rms is None else f"{outcome.relative_rms:.2g}",
        size(outcome.bytes) if outcome.bytes else "",
        outcome.note.replace("\n", " "),
    )


if __name__ == "__main__":
    sys.exit(main())
