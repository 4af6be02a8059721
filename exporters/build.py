"""Command line: `python -m exporters.build`. State lives elsewhere: this file is loaded as `__main__`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from exporters import plan, workers
from exporters.arguments import parser_of_build
from exporters.int8.calibration import calibration_id
from exporters.plan import DEFAULT_VARIANTS, Job, Outcome
from runtime import registry
from runtime.arguments import import_modules, join_negative
from runtime.artifacts import open_store
from runtime.commands import load_call
from runtime.errors import BackboneError, OptionError, OutIndicesError
from runtime.machine import installed, nvidia_driver, onnxruntime_distributions
from runtime.manifest import TARGETS, Form
from runtime.out_indices import OutIndices, label
from runtime.providers import check_installation
from runtime.request import Request, make_request

# What the extra `export` installs; which onnxruntime verifies (gpu or cpu) is the user's choice.
NEEDED = ("torch", "timm", "safetensors", "onnx", "onnx_ir", "onnxscript", "filelock", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = parser_of_build()
    options = parser.parse_args(join_negative(sys.argv[1:] if arguments is None else list(arguments)))
    if missing := [package for package in NEEDED if not installed(package)]:
        print(f"error: building needs {', '.join(missing)}: pip install 'backbone-runtime[export]'", file=sys.stderr)
        return 2
    if bool(options.names) == options.all:
        parser.error("name the backbones to build (a name or a glob), or pass --all; see runtime.list_models()")
    try:
        jobs = _jobs(options)
    except BackboneError as error:
        parser.error(str(error))
    try:
        return _dry_run(jobs, options) if options.dry_run else _run(jobs, options)
    except BackboneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was published stays; run the same command to go on", file=sys.stderr)
        return 130


def _jobs(options: argparse.Namespace) -> list[Job]:
    if "onnx" in options.format and not options.dry_run:
        check_installation(onnxruntime_distributions(), installed("onnxruntime"))  # verification will need it
    options.forms = _forms(options)
    _check_calibration(options)
    import_modules(options.imports)
    found = plan.names(options.names, options.exclude, options.all)
    if options.checkpoint_path is not None and len(found) > 1:
        raise OptionError(
            f"--checkpoint-path={options.checkpoint_path} holds the weights of one backbone, and {len(found)} were "
            f"named: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}. Name the one."
        )
    return [job for name in found for job in _jobs_of(name, options)]


def _check_calibration(options: argparse.Namespace) -> None:
    """Raise for images that nothing is calibrated with, or that are not there: a build would tell minutes later."""
    if options.calibration is None:
        return
    if not any(form.precision == "int8" for form in options.forms):
        raise OptionError(
            f"--calibration={options.calibration}: only int8 is calibrated, and none is asked for. Add "
            "--precision int8 (for the target cpu), or leave --calibration out."
        )
    calibration_id(options.calibration)


def _forms(options: argparse.Namespace) -> tuple[Form, ...]:
    forms = plan.forms(options.format, options.target or TARGETS, options.precision, options.input)
    if options.target is not None or nvidia_driver():
        return forms
    here = tuple(form for form in forms if (form.format, form.target) != ("pt2", "cuda"))
    return here or forms  # nothing else was asked for: its own process says what it lacks


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
            options.forms,
            force=options.force,
            imports=tuple(options.imports),
            max_params=options.max_params,
            calibration=options.calibration,
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
    for form in options.forms:
        replace(request, input=form.input)  # raises for an input that the backbone does not have
    return request


def _dry_run(jobs: list[Job], options: argparse.Namespace) -> int:
    from exporters import display

    planned = [(job, step) for job in jobs for step in _steps(job)]
    if options.json:
        for job, step in planned:
            key = job.request.key(step.form).to_json()
            planned_step = {"model": job.request.spec.name, "key": key, "action": step.action, "reason": step.reason}
            print(json.dumps(planned_step))
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
    from exporters import display

    with display.observer(len(waiting)) as observer:
        outcomes = [outcome for _, ready in looked_at for outcome in ready] + workers.run(
            waiting, observer, parallel=options.jobs, timeout=options.timeout, fail_fast=options.fail_fast
        )
    _report(jobs, outcomes, options.json)
    expected = sum(len(job.forms) for job in jobs)
    return 1 if len(outcomes) < expected or any(o.status == "failed" for o in outcomes) else 0


def _up_to_date(job: Job) -> list[Outcome]:
    """Return the job's outcomes when it has nothing to build: a process takes seconds to find that out."""
    from runtime.publishing import unfinished

    store, model = open_store(job.request.artifacts), job.request.spec.name
    try:
        steps = plan.plan(job, store)
    except BackboneError:
        return []  # told by the job's own process; the other models do not suffer from it
    done = not unfinished(store, model) and all(step.action == "skip" for step in steps)
    return plan.skipped(job, steps) if done else []


def _report(jobs: list[Job], outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        for outcome in outcomes:
            print(json.dumps(outcome.to_json(), sort_keys=True))
        return
    from exporters import display

    out = display.console()
    out.print(display.outcome_table(outcomes))
    for outcome in outcomes:
        if outcome.status == "failed":
            out.print(f"\n{display.line(outcome)}\n{outcome.detail}".rstrip(), markup=False)
    failed = any(outcome.status == "failed" for outcome in outcomes)
    unpublished = " Nothing of what failed was published." if failed else ""
    out.print(f"\n{display.summary(outcomes)}{unpublished}", markup=False)
    ready = {(o.model, o.variant, o.form) for o in outcomes if o.status != "failed"}
    calls = (
        load_call(job.request, form)
        for job in jobs
        for form in job.forms
        if (job.request.spec.name, label(job.request.canonical), form) in ready
    )
    if call := next(calls, None):
        out.print(f"Next: {call}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
