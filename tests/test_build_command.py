"""`python -m exporters.build`: what it says, what it leaves behind, how it ends."""

import io
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from builds import TINY, Ran, run_command
from conftest import request_for
from rich.console import Console

from exporters import build, display, plan
from runtime.artifacts import Store
from runtime.manifest import Form

# What a build makes of each variant by default.
FORMS = ("onnx for cpu, fp32", "onnx for cuda, fp32", "torchscript, fp32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def mixed(root: Path) -> Ran:
    """Two good backbones between three that fail, two at a time."""
    names = ("test/nan", "test/crash", "test/two_stages", "test/not_a_module", "test/own")
    return run_command(*names, *TINY, "--artifacts", root, "--jobs", 2)


def test_what_fails_does_not_hold_up_the_rest(mixed: Ran, root: Path) -> None:
    assert mixed.status == 1
    published = [(n, len(Store(root).read(f"test/{n}").artifacts)) for n in ("own", "two_stages", "nan", "crash")]
    assert published == [("own", 3), ("two_stages", 6), ("nan", 0), ("crash", 0)]
    assert "9 built, 9 failed. Nothing of what failed was published." in mixed.out


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nan", "failed (embedding of the eager backbone itself: 1 of 5 values are not finite)"),
        ("crash", "failed (the process was killed by SIGKILL, as the kernel does when memory runs out while loading"),
        ("not_a_module", "failed ('test/not_a_module': tiny_backbones.not_a_module returned a list; a registered"),
    ],
)
def test_each_failure_says_why(mixed: Ran, name: str, why: str) -> None:
    for form in FORMS:
        assert f"test/{name} [embedding] {form}: {why}" in " ".join(mixed.out.split())
    assert "Traceback" not in mixed.out


def test_the_table_tells_what_was_measured(mixed: Ran) -> None:
    header, *rows = mixed.out.splitlines()

    assert " ".join(header.split()) == "MODEL VARIANT FORM STATUS MIN COSINE MAX DIFF REL RMS SIZE TIME NOTE"
    at = {name: header.index(name) for name in ("FORM", "STATUS", "MIN COSINE", "REL RMS", "SIZE", "TIME")}
    own = {row[at["FORM"] : at["STATUS"]].strip(): row for row in rows if row.startswith("test/own ")}
    assert tuple(own) == FORMS
    for row in own.values():
        assert row[at["STATUS"] :].split()[0] == "built"
        assert float(row[at["MIN COSINE"] :].split()[0]) == pytest.approx(1, abs=1e-6)
        assert row[at["SIZE"] : at["TIME"]].split()[1] == "MB"
    assert 0 < float(own[FORMS[0]][at["REL RMS"] :].split()[0]) < 1e-5


def test_progress_is_plain_lines_where_nobody_watches(mixed: Ran) -> None:
    lines = mixed.err.splitlines()

    assert "test/own [embedding]: exporting onnx" in lines
    assert [line.split()[0] for line in lines if line.startswith("(")] == [
        f"({i}/6)" for i in range(1, 7) for _ in FORMS
    ]
    assert not any(c in mixed.err for c in "\x1b\r")


def test_progress_is_live_on_a_terminal() -> None:
    screen = io.StringIO()
    job = plan.Job(request_for("test/own"), (Form("onnx"),))

    with display.live(Console(file=screen, force_terminal=True, width=120)) as progress:
        observer = display.LiveProgress(progress, 1)
        observer.started(job)
        observer.stage(job, "exporting onnx")
        progress.refresh()
        observer.finished(job, [plan.outcome(job, Form("onnx"), "built", seconds=3.0)])

    shown = re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue())
    assert re.search(r"test/own \[embedding\] .* exporting onnx", shown)
    assert "test/own [embedding] onnx for cpu, fp32: built in 3 s" in shown
    assert re.search("building .* 1/1", shown)


def test_variants_of_one_model_follow_each_other_and_models_go_side_by_side(mixed: Ran) -> None:
    lines = mixed.err.splitlines()

    def at(text: str) -> int:
        return next(i for i, line in enumerate(lines) if text in line)

    assert at("test/two_stages [embedding] torchscript, fp32: built") < at("test/two_stages [1]: starting")
    assert at("test/crash [embedding]: starting") < at("test/nan [embedding] onnx for cpu, fp32: failed")
    at_once = [len(FORMS) * line.endswith(": starting") - line.startswith("(") for line in lines]
    assert max(sum(at_once[:i]) for i in range(len(lines))) == 2 * len(FORMS)


def test_what_is_up_to_date_is_skipped_without_a_process(mixed: Ran, root: Path) -> None:
    again = run_command("test/own", "test/two_stages", *TINY, "--artifacts", root, "--json")

    assert again.status == 0
    assert [(o["status"], o["note"]) for o in again.lines] == [("skipped", "up to date")] * 9
    assert [o["model"] for o in again.lines] == ["test/own"] * 3 + ["test/two_stages"] * 6
    assert again.err == ""


def test_what_a_killed_build_left_is_cleaned_up_also_when_all_is_up_to_date(mixed: Ran, root: Path) -> None:
    left = root / ".staging/test--own/test/own/graph.part"
    left.parent.mkdir(parents=True)
    left.touch()

    again = run_command("test/own", *TINY, "--artifacts", root, "--json")

    assert [o["status"] for o in again.lines] == ["skipped"] * 3
    assert not left.exists()


def test_a_failure_is_told_as_json(tmp_path: Path) -> None:
    ran = run_command("test/not_a_module", *TINY, "--artifacts", tmp_path, "--json", "--format", "onnx")

    assert ran.status == 1
    assert [(o["format"], o["target"], o["precision"], o["input"]) for o in ran.lines] == [
        ("onnx", "cpu", "fp32", "float32"),
        ("onnx", "cuda", "fp32", "float32"),
    ]
    for outcome in ran.lines:
        assert (outcome["model"], outcome["variant"]) == ("test/not_a_module", "embedding")
        assert outcome["status"] == "failed"
        assert "returned a list" in outcome["note"]


def test_jobs_over_their_time_are_killed(tmp_path: Path) -> None:
    # Both are over at once, and with --fail-fast the third is not even started.
    ran = run_command(
        *("test/slow", "test/slow_too", "test/own", *TINY, "--format", "onnx", "--artifacts", tmp_path, "--json"),
        *("--jobs", 2, "--timeout", 1, "--fail-fast"),
    )

    assert ran.status == 1
    assert re.fullmatch(r"killed after 1 s \(timeout while .*\); allow more with --timeout", ran.lines[0]["note"])
    assert {o["model"] for o in ran.lines} <= {"test/slow", "test/slow_too"}
    assert multiprocessing.active_children() == []


def test_fail_fast_kills_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    ran = run_command(
        *("test/slow", "test/crash", "test/own", *TINY, "--format", "onnx", "--artifacts", tmp_path, "--json"),
        *("--jobs", 2, "--timeout", 60, "--fail-fast"),
    )

    assert ran.status == 1
    assert [(o["model"], o["target"]) for o in ran.lines] == [("test/crash", "cpu"), ("test/crash", "cuda")]
    assert "test/own" not in ran.err
    assert multiprocessing.active_children() == []


def test_an_interrupt_ends_everything_with_status_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "exporters.build", "test/slow", *TINY, "--artifacts", str(tmp_path)]
    options: dict[str, Any] = {
        "cwd": Path(build.__file__).parents[1],
        "stderr": subprocess.PIPE,
        "start_new_session": True,  # as at a terminal, the children get the signal, too
        "preexec_fn": lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # background jobs inherit that it is ignored
    }
    with subprocess.Popen(command, text=True, **options) as process:
        assert process.stderr is not None
        told = list(itertools.takewhile(lambda line: "loading eager" not in line, process.stderr))
        assert process.poll() is None, told
        below = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode == 130
    assert rest == "interrupted: what was published stays; run the same command to go on\n"
    assert below
    assert psutil.wait_procs(below, timeout=10)[1] == []
