"""eva, in an environment of its own: what it needs excludes what this one holds (onnxruntime's CPU wheel)."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pytest
import uv

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-eva"
CONSTRAINTS = ROOT / ".ci" / "eva-constraints.txt"
# What uv says when it cannot reach a registry; anything else that goes wrong is a failure. Words, whole ones: the
# pins name packages, such as networkx.
UNREACHABLE = re.compile(
    r"\b(failed to (fetch|download)|connection|dns error|timed out|network|offline)\b", re.IGNORECASE
)
# eva's packages hold no configurations: they are fetched from where docs/eva.md says, and compared with these.
PAGE = ROOT / "docs" / "eva.md"
OWN = {
    "bach.yaml": "ba584e2383ae4100fdd06a4dfdc866ef5faf2454bf47c5be9fae30547fe848b6",
    "consep.yaml": "ccc0bf30bfd903491c016982e82a53094c60121aca262f10a0a35425771f1f48",
}
CONTRADICTION = "No solution found"


@dataclass(frozen=True)
class Run:
    """One run of eva that came to its end.

    Attributes:
        metrics: Of the validation set, the value of each of the session's runs.
        embeddings: Where the predictions were written.
        out: What was printed.
    """

    metrics: dict[str, list[float]]
    embeddings: Path
    out: str


def install() -> Path:
    """Return the interpreter of the environment that holds what the extra `eva` names; made when it is not there.

    Without a registry the tests that need it are skipped; pins that cannot be had together are a failure.
    """
    python, stamp = FOLDER / "bin" / "python", FOLDER / ".ready"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    with filelock.FileLock(f"{FOLDER}.lock"):
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        shutil.rmtree(FOLDER, ignore_errors=True)
        _uv("venv", "--python", sys.executable, FOLDER)
        _uv("pip", "install", "--python", python, "-c", CONSTRAINTS, "-r", "pyproject.toml", "--extra", "eva")
        stamp.write_text(wanted)
    return python


def start(python: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Return what a command of the environment did: this checkout is importable, no hub is reachable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BACKBONE"))}
    settled = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return subprocess.run(
        [python, *map(str, arguments)],
        env=inherited | settled | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )


def evaluate(python: Path, folder: Path, stage: str, configuration: Path, **variables: str) -> Run:
    """Run `eva <stage>` in a folder of its own; return what it found."""
    folder.mkdir()
    places = {"OUTPUT_ROOT": str(folder / "logs"), "EMBEDDINGS_ROOT": str(folder / "embeddings")}
    done = start(python, python.parent / "eva", stage, "--config", configuration, **places, **variables)
    (folder / "printed").write_text(done.stdout)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-4000:]}"
    (results,) = (folder / "logs").glob("*/results.json")
    (found,) = json.loads(results.read_text())["metrics"]["val"]
    metrics = {name.removeprefix("val/"): statistics["values"] for name, statistics in found.items()}
    return Run(metrics, folder / "embeddings", done.stdout)


def own_configurations(folder: Path) -> Path:
    """Fill a folder with eva's own configurations, changed by the very `sed` of the page.

    Without the network the tests that need them are skipped; other bytes than eva's are a failure.
    """
    kept = FOLDER / "configurations"
    kept.mkdir(exist_ok=True)
    for name, digest in OWN.items():
        if not (kept / name).is_file():
            (kept / name).write_bytes(_fetch(name))
        content = (kept / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, f"{kept / name} is not eva's: remove it"
        (folder / name).write_bytes(content)
    (command,) = re.findall(r"^\$ (sed -i .+) bach\.yaml$", PAGE.read_text(), re.MULTILINE)
    subprocess.run([*shlex.split(command), *OWN], cwd=folder, check=True)
    return folder


def _fetch(name: str) -> bytes:
    (url,) = re.findall(rf"^\$ curl -O (\S+/{re.escape(name)})$", PAGE.read_text(), re.MULTILINE)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        pytest.skip(f"eva's own {name} cannot be fetched from {url}: {error}")


def tell(python: Path, code: str, **variables: str) -> Any:
    """Return the JSON that `code` prints last in the environment."""
    done = start(python, "-c", code, **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def unreachable(said: str) -> bool:
    """Return whether uv failed for want of a registry, and not because of what it was asked for."""
    return CONTRADICTION not in said and bool(UNREACHABLE.search(said))


def _uv(*arguments: object) -> None:
    command = [uv.find_uv_bin(), *map(str, arguments), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if done.returncode and unreachable(done.stderr):
        pytest.skip(f"eva's environment cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
