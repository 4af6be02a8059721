"""The project around the code: its documents, make targets and rules."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest

from runtime import __version__, errors, list_models, load_model, registry

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Of the text that apache.org publishes as LICENSE-2.0.txt.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/")
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|npmjs)\.(?:org|com)\b")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, as it runs outside of any `make`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, **options)


def make(*arguments: str) -> str:
    result = run("make", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_targets() -> list[str]:
    """Return what `make help` lists."""
    return [line.split()[0] for line in make("help").splitlines()]


def tracked_texts() -> dict[str, str]:
    """Return the text files of the repository, those not yet added included."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    assert listed.returncode == 0, listed.stderr
    present = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return {name: (ROOT / name).read_text() for name in present if not name.endswith((".png", ".npz", ".npy"))}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_project_has_its_documents(document: str) -> None:
    assert (ROOT / document).read_text().startswith("# ")


def test_the_licence_is_the_unaltered_text_of_apache_2() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == __version__ == PYPROJECT["project"]["version"]


def test_every_target_of_the_makefile_is_in_its_help_and_can_be_made() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert phony is not None
    assert make_targets() == phony[1].split()
    for target in make_targets():
        make("--dry-run", target)


def test_every_module_that_a_make_target_starts_exists() -> None:
    commands = make("--dry-run", "--always-make", *make_targets())

    own = set(re.findall(r"-m ((?:benchmarks|exporters|runtime)\.\w+)", commands))

    assert own
    for module in own:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_continuous_integration_runs_every_check() -> None:
    script = ROOT / ".ci" / "run"
    commands = make("--dry-run", "test")

    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
    for check in ("ruff check .", "ruff format --check .", "mypy", '-m pytest -m "not heavy"'):
        assert re.search(rf"{re.escape(check)}$", commands, re.MULTILINE), check


def test_the_constraints_pin_versions_and_nothing_else() -> None:
    comment, *pins = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()

    assert comment.startswith("# Written by `make lock`.")
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins), pins
    named = {pin.partition("==")[0] for pin in pins}
    extras = PYPROJECT["project"]["optional-dependencies"]
    brought = [extras[extra] for extra in ("dev", "gpu", "export", "eager")]
    dependencies = [*PYPROJECT["project"]["dependencies"], *(line for lines in brought for line in lines)]
    required = {re.split(r"[>=\[]", line)[0].lower().replace("_", "-") for line in dependencies}
    assert required - {"backbone-runtime"} <= named


@pytest.mark.parametrize("trace", [MACHINE_PATH, REGISTRY_HOST], ids=["paths", "registries"])
def test_no_file_of_the_repository_names_the_machine_it_was_written_on(trace: re.Pattern[str]) -> None:
    texts = tracked_texts()

    assert len(texts) > 40
    assert {name: found[0] for name, text in texts.items() if (found := trace.search(text))} == {}


def test_no_file_of_the_code_is_longer_than_300_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in ("runtime", "exporters")
        for path in (ROOT / package).rglob("*.py")
    }

    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert len(lengths) > 30


def test_every_error_is_in_the_tree_drawn_in_the_module() -> None:
    drawn: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in str(errors.__doc__).splitlines():
        if match := re.fullmatch(r"    ([│├└─ ]*)(\w+)\s*(?:\((\w+)\))?.*", line):
            path[len(match[1]) // 4 :] = [match[2]]
            drawn[match[2]] = tuple(name for name in (*path[-2:-1], match[3]) if name)

    real = {
        name: tuple(base.__name__ for base in kind.__bases__ if base is not Exception)
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
    }
    assert drawn == real


def test_every_error_is_a_backbone_error_unless_it_is_a_warning() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]

    assert {kind.__name__ for kind in kinds if not issubclass(kind, errors.BackboneError)} == {
        "BackendFallbackWarning",
        "PluginWarning",
        "PrecisionWarning",
    }


@pytest.mark.parametrize(
    "package", PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
)
def test_ruff_bans_imports_at_module_level_that_serving_must_not_need(package: str) -> None:
    code = f'"""A module."""\n\nimport {package}\n\n__all__ = ["{package}"]\n'
    inside = (
        f'"""A module."""\n\n\ndef load() -> object:\n    """Load."""\n    import {package}\n\n    return {package}\n'
    )

    assert ruff("runtime/new.py", code) == ["TID253"]
    assert ruff("exporters/new.py", code) == ["TID253"]
    assert ruff("runtime/new.py", inside) == []


def ruff(name: str, code: str) -> list[str]:
    """Return the rules that `code` breaks as file `name`."""
    result = run(BIN / "ruff", "check", "--output-format=json", "--stdin-filename", name, "-", input=code)
    return [finding["code"] for finding in json.loads(result.stdout)]


def test_every_exception_from_the_import_ban_is_for_a_file_that_needs_it() -> None:
    ignores = PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    exempt = [name for name, rules in ignores.items() if rules == ["TID253"]]

    assert exempt
    for name in exempt:
        files = [path for path in ROOT.glob(name) if path.name != "__init__.py"]
        need = [path for path in files if "TID253" in ruff("runtime/new.py", path.read_text())]
        assert len(need) > len(files) / 2, name  # of a folder, at least most


def test_the_worked_example_of_the_contributing_guide_is_a_working_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"^( *)```python\n(.*?)^\1```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    example = textwrap.dedent(block[2])
    assert "pathology/example_vits16" not in list_models()
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))  # the registry forgets it again

    exec(compile(example, "example.py", "exec"), {"__name__": "example"})

    model = load_model("pathology/example_vits16", backend="eager", weights="random", device="cpu")
    assert model(np.zeros((1, 3, 224, 224), np.float32)).shape == (1, 384)
    assert ruff("runtime/backbones/example.py", example) == []


def test_the_contributing_guide_explains_every_fact_of_a_registration() -> None:
    table = re.search(r"\| Fact \| Meaning \|\n(( +\|.+\n)+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert table is not None

    explained = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table[1].splitlines()))

    facts = set(registry.BackboneSpec.__dataclass_fields__) - {"name", "build"}
    assert set(explained) == facts
