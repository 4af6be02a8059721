"""The quick start: every block of it runs as it stands, in order, and prints what the page says."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+) ?(.*)\n((?:.*\n)*?)^```$", (ROOT / "docs" / "quick-start.md").read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Reader:
    """Somebody with an empty folder, who types what the page says."""

    folder: Path

    def types(self, *command: str, given: str | None = None) -> str:
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "BACKBONE_ARTIFACTS": str(self.folder / "artifacts"),
            "BACKBONE_ON_FALLBACK": "error",
        }
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, input=given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The reader, after the page's commands."""
    made = Reader(tmp_path_factory.mktemp("reader"))
    for language, marks, body in BLOCKS:
        if language == "console" and "no-run" not in marks:
            for command in re.findall(r"^\$ (.+)$", body.replace("\\\n", ""), re.MULTILINE):
                made.types("bash", "-ec", command)
    return made


def test_the_page_has_commands_and_python_and_leaves_out_only_the_installation() -> None:
    assert [body for _, marks, body in BLOCKS if "no-run" in marks and "pip install" not in body] == []
    assert [language for language, marks, _ in BLOCKS if "no-run" not in marks].count("console") >= 1


def test_the_python_of_the_page_prints_what_the_page_says(reader: Reader) -> None:
    said = [body for language, _, body in BLOCKS if language == "text"]
    code = [body for language, _, body in BLOCKS if language == "python"]

    printed = reader.types(sys.executable, "-", given="\n".join(code))

    assert len(said) == len(code) == 4
    assert printed == "".join(said)
