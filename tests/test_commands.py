"""Every command line: its help, its scripts, and how it ends."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from environments import ROOT
from terminal import run

from benchmarks import demo, embedding, embedding_ray, figures, passes, scale, sweep_timm
from benchmarks import run as benchmark
from exporters import build, inspect, prune, push, triton, verify
from runtime.artifacts import ENVIRONMENT_VARIABLE, default_root
from runtime.embedding import command as embed
from runtime.errors import OptionError, StoreError, UnknownModelError
from runtime.sharing import command as pull
from runtime.terminal import doctor, entry, info, listing
from runtime.terminal.output import size, table
from runtime.terminal.status import exit_status

COMMANDS = {
    "python -m runtime": entry.main,
    "python -m runtime list": listing.main,
    "python -m runtime info": info.main,
    "python -m runtime doctor": doctor.main,
    "python -m runtime.embed": embed.main,
    "python -m runtime.pull": pull.main,
    "python -m exporters.build": build.main,
    "python -m exporters.verify": verify.main,
    "python -m exporters.inspect": inspect.main,
    "python -m exporters.prune": prune.main,
    "python -m exporters.push": push.main,
    "python -m exporters.triton": triton.main,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_statuses(command: str) -> None:
    ran = run(COMMANDS[command], "--help")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: {command} ")
    examples = ran.out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    typed = [line for line in examples if "python -m" in line]  # others are what comes after: tritonserver
    assert typed
    own = command.rpartition(" ")[2] if command.startswith("python -m runtime ") else command.partition("-m ")[2]
    assert all(own in line for line in typed)
    for status in ("0 ", "1 ", "2 ", "130 "):
        assert status in ran.out.partition("exit status: ")[2]
    if command != "python -m runtime":
        assert "--json" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 120


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "python -m runtime"])
def test_help_says_where_artifacts_are_looked_for(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)

    told = " ".join(run(COMMANDS[command], "--help").out.split())

    assert f"default: ${ENVIRONMENT_VARIABLE}, else artifacts/ of the checkout, else the user's data folder)" in told
    assert default_root() == ROOT / "artifacts"  # the place of the code, not of whoever runs it


@pytest.mark.parametrize(
    ("main", "typed", "near"),
    [
        (build.main, ["--all", "--out", "/tmp/x"], "--out. Near: --out-indices\n"),
        (build.main, ["--all", "--dry-rum"], "--dry-rum. Near: --dry-run\n"),
        (inspect.main, ["NAME", "--graphs=x", "--js"], "--graphs=x --js. Near: --graph, --json\n"),
        (embed.main, ["NAME", "in", "--out", "out", "--mp", "1"], "--mp 1. Near: --mpp\n"),
        (figures.main, ["--round", "3", "--quietly"], "--round 3 --quietly. Near: --rounds\n"),
        (listing.main, ["--zzz"], "--zzz\n"),
    ],
)
def test_options_are_spelt_out_and_near_ones_are_named(
    main: Callable[[Sequence[str]], int], typed: list[str], near: str
) -> None:
    ran = run(main, *typed)

    assert ran.status == 2
    assert ran.err.endswith(f": error: unrecognized arguments: {near}")


def test_every_parser_is_made_in_one_place() -> None:
    sources = [path for package in ("runtime", "exporters", "benchmarks") for path in (ROOT / package).rglob("*.py")]

    assert [path.name for path in sources if "ArgumentParser(" in path.read_text()] == []


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (figures.main, "--rounds"),
        (demo.main, "--rounds"),
        (passes.main, "--rounds"),
        (passes.main, "--batches"),
        (benchmark.main, "--rounds"),
        (benchmark.main, "--budget"),
        (embedding.main, "--rounds"),
        (embedding.main, "--seconds"),
        (embedding.main, "--workers"),
        (embedding_ray.main, "--tiles"),
        (embedding_ray.main, "--part-tiles"),
        (embedding_ray.main, "--rounds"),
        (scale.main, "--files"),
        (scale.main, "--tiles"),
        (sweep_timm.main, "--per-family"),
        (sweep_timm.main, "--timeout"),
        (verify.main, "--timeout"),
        (build.main, "--jobs"),
        (embed.main, "--batch-size"),
        (embed.main, "--mpp"),
    ],
)
def test_nothing_is_done_no_or_fewer_times(main: Callable[[Sequence[str]], int], option: str) -> None:
    for wrong in ("few", "-1", "0"):  # a type that takes any number fails before it measures
        ran = run(main, f"{option}={wrong}")

        assert ran.status == 2
        assert re.search(rf"argument {option}: '{wrong}' is not a number (of at least 1|above 0)\n$", ran.err)


@pytest.mark.parametrize(("main", "option"), [(benchmark.main, "--cold-starts"), (embed.main, "--allow-unreadable")])
def test_none_may_be_asked_for_but_not_fewer(main: Callable[[Sequence[str]], int], option: str) -> None:
    for wrong in ("few", "-1"):
        ran = run(main, f"{option}={wrong}")

        assert ran.status == 2
        assert ran.err.endswith(f"argument {option}: '{wrong}' is not a number of at least 0\n")


def test_every_subcommand_is_reached_by_its_word() -> None:
    for word, (module, what) in entry.COMMANDS.items():
        ran = run(entry.main, word, "--help")
        assert re.match(rf"usage: python -m runtime[ .]{word} ", ran.out), module
        assert f"  {word:8}{what}\n" in run(entry.main, "--help").out


def test_the_console_scripts_are_the_commands() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

    assert {"backbone", "backbone-build", "backbone-verify", "backbone-inspect", "backbone-prune"} <= set(scripts)
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function)), name


def ended(error: BaseException | None) -> Callable[[], int]:
    def work() -> int:
        if error is not None:
            raise error
        return 0

    return work


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (None, 0, ""),
        (UnknownModelError("who?"), 2, "error: who?\n"),
        (OptionError("what?"), 2, "error: what?\n"),
        (StoreError("full"), 1, "error: full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_exit_statuses(error: BaseException | None, status: int, says: str) -> None:
    ran = run(lambda _: exit_status(ended(error)))

    assert (ran.status, ran.out, ran.err) == (status, "", says)


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(ended(ZeroDivisionError()))


def test_a_reader_that_has_read_enough_ends_it_quietly(tmp_path: Path) -> None:
    """As `| head -1` does: the listing is longer than a pipe holds."""
    command = [sys.executable, "-m", "runtime", "list", "timm/*", "--json", "--artifacts", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()

    assert first.startswith("{")
    assert (process.returncode, complaints) == (0, "")


def test_a_table_has_columns_as_wide_as_their_widest_cell() -> None:
    rows: Sequence[Sequence[str]] = [("a", "1", ""), ("bbb", "22", "x")]

    assert table(("N", "COUNT", "LAST"), rows).splitlines() == ["N    COUNT  LAST", "a    1", "bbb  22     x"]


@pytest.mark.parametrize(
    ("bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (86_000_000, "86.0 MB"), (4_540_000_000, "4.5 GB")],
)
def test_sizes_are_those_that_people_read(bytes: int, shown: str) -> None:
    assert size(bytes) == shown
