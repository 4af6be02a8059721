"""Command line: `python -m exporters.build`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from exporters import plan, workers
from exporters.plan import DEFAULT_VARIANTS, FORMATS, Job, Outcome
from runtime import registry
from runtime.artifacts import open_store
from runtime.errors import BackboneError, OptionError, OutIndicesError
from runtime.machine import installed, onnxruntime_distributions
from runtime.out_indices import OutIndices, label
from runtime.providers import check_installation
from runtime.request import Request, load_call, make_request

# What the extra `export` installs; which onnxruntime verifies (gpu or cpu) is the user's choice.
NEEDED = ("torch", "timm", "safetensors", "onnx", "onnx_ir", "onnxscript", "filelock", "rich")

EPILOG = """examples:
  python -m exporters.build pathology/kaiko_vits16                    # the published weights
  python -m exporters.build "universal/*_random" --out-indices none --out-indices 2
  python -m exporters.build --all --weights random --exclude "*gigapath*" --dry-run

exit status: 0 everything asked for is published and verified, 1 something failed (the rest is published),
2 wrong usage, a missing package or a name that matches nothing, 130 interrupted (run it again to go on)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    if missing := [package for package in NEEDED if not installed(package)]:
        print(f"error: building needs {', '.join(missing)}: pip install 'backbone-runtime[export]'", file=sys.stderr)
        return 2
    parser = _parser()
    options = parser.parse_args(_join_negative(sys.argv[1:] if arguments is None else list(arguments)))
    if bool(options.names) == options.all:
        parser.error("name the backbones to build (a name or a glob), or pass --all; see runtime.list_models()")
    try:
        jobs = _jobs(options)
    except (BackboneError, ImportError) as error:
        parser.error(str(error))
    try:
        return _dry_run(jobs, options) if options.dry_run else _run(jobs, options)
    except BackboneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was published stays; run the same command to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exporters.build",
        description="Export backbones, verify the artifacts against eager PyTorch, publish them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME|GLOB", help="registered backbones, such as pathology/kaiko_vits16")
    add("--all", action="store_true", help="every registered backbone")
    add("--exclude", action="append", default=[], metavar="GLOB", help="leave these out (repeatable)")
    add(
        "--out-indices",
        action="append",
        type=_out_indices,
        metavar="WHICH",
        help="repeatable: none (the embedding), 2 (the last two maps), -2,-4 (those blocks); default: none, 1 and 4",
    )
    add("--format", type=_formats, default=FORMATS, metavar="F,F", help="onnx,torchscript (default: both)")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="default: pretrained")
    add("--checkpoint-path", metavar="FILE", help="weights of the one backbone named: a local file, no network needed")
    add("--seed", type=int, default=0, help="of random weights (default: 0)")
    add("--image-size", type=_image_size, metavar="N|HxW|dynamic", help="pixels; default: the publisher's size")
    add("--option", action="append", default=[], type=_option, metavar="NAME=VALUE", help="the backbone's own option")
    add(
        "--artifacts",
        metavar="DIR",
        help="where to publish (default: $BACKBONE_ARTIFACTS, else ./artifacts)",
    )
    add("--import", action="append", default=[], dest="imports", metavar="MODULE", help="registers further backbones")
    add("--jobs", type=_positive, default=1, metavar="N", help="models built at once (default: 1)")
    add("--timeout", type=_positive, metavar="SECONDS", help="kill a variant that takes longer")
    add("--max-params", type=_count, metavar="N", help="skip what has more parameters, such as 500M or 1.2B")
    add("--force", action="store_true", help="build what is up to date, too")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--dry-run", action="store_true", help="say what would be built, and why")
    add("--json", action="store_true", help="one JSON object per artifact on standard output")
    return parser


def _join_negative(arguments: list[str]) -> list[str]:
    """Let `--out-indices -2,-4` be written with a space: argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--out-indices":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _out_indices(text: str) -> tuple[OutIndices]:
    if text.lower() in ("none", "embedding"):
        return (None,)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, nor a number, nor numbers as in -2,-4") from None
    return (numbers[0] if len(numbers) == 1 and numbers[0] >= 0 else tuple(numbers),)


def _formats(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := [f for f in chosen if f not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r} is none of {', '.join(FORMATS)}")
    return chosen


def _image_size(text: str) -> int | tuple[int, ...] | str:
    if text == "dynamic":
        return text
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither pixels, as in 224 or 224x448, nor dynamic") from None
    return sides[0] if len(sides) == 1 else sides


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value.lower() if value in ("True", "False", "None") else value)
    except ValueError:
        return name, value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _count(text: str) -> int:
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1)
    try:
        count = round(float(text if factor == 1 else text[:-1]) * factor)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of parameters, such as 500M or 1.2B")
    return count


def _jobs(options: argparse.Namespace) -> list[Job]:
    if "onnx" in options.format and not options.dry_run:
        check_installation(onnxruntime_distributions(), installed("onnxruntime"))  # verification will need it
    for module in options.imports:
        import_module(module)
    found = plan.names(options.names, options.exclude, options.all)
    if options.checkpoint_path is not None and len(found) > 1:
        raise OptionError(
            f"--checkpoint-path={options.checkpoint_path} holds the weights of one backbone, and {len(found)} were "
            f"named: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}. Name the one."
        )
    return [job for name in found for job in _jobs_of(name, options)]


def _jobs_of(name: str, options: argparse.Namespace) -> Iterator[Job]:
    asked = [which for (which,) in options.out_indices] if options.out_indices else None
    seen = set()
    for out_indices in DEFAULT_VARIANTS if asked is None else asked:
        try:
            request = _request(name, out_indices, options)
            if request.canonical in seen:
                continue
        except (OptionError, OutIndicesError):
            # A default variant that the backbone does not have is no mistake of the caller's; the embedding always is.
            if asked is not None or out_indices is None:
                raise
            continue
        seen.add(request.canonical)
        yield Job(
            request,
            options.format,
            force=options.force,
            imports=tuple(options.imports),
            max_params=options.max_params,
        )


def _request(name: str, out_indices: OutIndices, options: argparse.Namespace) -> Request:
    given = {
        "out_indices": out_indices,
        "weights": options.weights,
        "seed": options.seed,
        "checkpoint_path": options.checkpoint_path,
        "image_size": options.image_size,
        "artifacts": str(open_store(options.artifacts).root),
    }
    request = make_request(registry.find(name), dict(options.option), {k: v for k, v in given.items() if v is not None})
    request.size, request.canonical  # noqa: B018  (raise on bad values before anything starts)
    return request


def _dry_run(jobs: list[Job], options: argparse.Namespace) -> int:
    from exporters import display

    planned = [(job, step) for job in jobs for step in _steps(job)]
    if options.json:
        for job, step in planned:
            print(
                json.dumps(
                    {"model": job.request.spec.name, "key": job.request.key(step.format).to_json(), **vars(step)}
                )
            )
    else:
        display.console().print(display.plan_table(planned))
    return 0


def _steps(job: Job) -> list[plan.Step]:
    if job.max_params is not None:
        from runtime import eager

        if steps := plan.too_large(job, eager.count_parameters(job.request)):
            return steps
    return plan.plan(job, open_store(job.request.artifacts))


def _run(jobs: list[Job], options: argparse.Namespace) -> int:
    looked_at = [(job, _up_to_date(job)) for job in jobs]
    waiting = [job for job, ready in looked_at if not ready]
    with _observer(len(waiting)) as observer:
        outcomes = [outcome for _, ready in looked_at for outcome in ready] + workers.run(
            waiting, observer, parallel=options.jobs, timeout=options.timeout, fail_fast=options.fail_fast
        )
    _report(jobs, outcomes, options.json)
    expected = sum(len(job.formats) for job in jobs)
    return 1 if len(outcomes) < expected or any(o.status == "failed" for o in outcomes) else 0


def _up_to_date(job: Job) -> list[Outcome]:
    """Return the job's outcomes when it has nothing to build: a process takes seconds to find that out."""
    from exporters import publish

    store, model = open_store(job.request.artifacts), job.request.spec.name
    try:
        steps = plan.plan(job, store)
    except BackboneError:
        return []  # told by the job's own process; the other models do not suffer from it
    done = not publish.unfinished(store, model) and all(step.action == "skip" for step in steps)
    return plan.skipped(job, steps) if done else []


@contextlib.contextmanager
def _observer(total: int) -> Iterator[workers.Observer]:
    from exporters import display

    out = display.console(stderr=True)
    if not out.is_terminal:
        yield display.PlainProgress(out, total)
        return
    with display.live(out) as progress:
        yield display.LiveProgress(progress, total)


def _report(jobs: list[Job], outcomes: list[Outcome], as_json: bool) -> None:
    from exporters import display

    if as_json:
        for outcome in outcomes:
            print(display.as_json(outcome))
        return
    out = display.console()
    out.print(display.outcome_table(outcomes))
    for outcome in outcomes:
        if outcome.status == "failed":
            out.print(f"\n{display.line(outcome)}\n{outcome.detail}".rstrip(), markup=False)
    out.print(f"\n{display.summary(outcomes)}", markup=False)
    ready = {(o.model, o.variant, o.format) for o in outcomes if o.status != "failed"}
    calls = (
        load_call(job.request, format)
        for job in jobs
        for format in job.formats
        if (job.request.spec.name, label(job.request.canonical), format) in ready
    )
    if call := next(calls, None):
        out.print(f"Next: {call}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
