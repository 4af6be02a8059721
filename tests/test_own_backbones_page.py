"""The page on your own backbones: every block of it runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wrapped_backbones
from test_registry import in_a_fresh_interpreter

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own_backbones.md").read_text()
BLOCKS = re.findall(r"^```python ?(.*)\n((?:.*\n)*?)^```$", PAGE, re.MULTILINE)
BUILD = re.search(r"^\$ python (-m exporters\.build [^#\n]+)", PAGE, re.MULTILINE)

# What is loaded of the registered backbones: with weights of their own where the user's folder has them.
LOAD = """
import json, runtime
import numpy as np
shapes = {}
for name in runtime.list_models("my/*"):
    spec = runtime.registry.find(name)
    if name in ("my/hub", "my/dino"):
        continue  # a network is needed
    random = name in ("my/vit", "my/tuned_kaiko")
    model = runtime.load_model(name, backend="eager", weights="random" if random else "pretrained", device="cpu")
    side = spec.preprocessing.size
    batch = (1, spec.preprocessing.channels, *[side] * spec.preprocessing.spatial_dims)
    shapes[name] = model(np.zeros(batch, np.float32)).shape
print(json.dumps([runtime.list_models("my/*"), shapes]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works: a folder with what the page speaks of."""
    made = tmp_path_factory.mktemp("reader")
    wrapped_backbones.write(made)
    (made / "dinov2").rename(made / "my_dinov2")
    (made / "repository").rename(made / "my_repository")
    for marks, code in BLOCKS:
        if found := re.search(r"file=(\S+)", marks):
            (made / found[1]).write_text(code)
    return made


def test_the_page_has_an_example_for_every_source() -> None:
    text = "".join(code for _, code in BLOCKS)

    for wrapper in ("function", "timm", "transformers", "torch_hub", "checkpoint"):
        assert f"wrappers.{wrapper}(" in text
    assert "@register_model(" in text
    assert len([marks for marks, _ in BLOCKS if "no-run" in marks]) == 1


def test_every_example_registers_and_all_but_those_of_a_network_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    examples = "".join(
        f"import {found[1]}\n" if (found := re.search(r"file=(\w+)", marks)) else code
        for marks, code in BLOCKS
        if "no-run" not in marks
    )

    names, shapes = in_a_fresh_interpreter(f"{examples}\n{LOAD}", folder)  # type: ignore[misc]

    assert names == sorted([*shapes, "my/dino", "my/hub"])
    assert shapes == {
        "my/finetuned_dino": [1, 48],
        "my/function": [1, 16],
        "my/local_hub": [1, 8],
        "my/tuned_kaiko": [1, 384],
        "my/vit": [1, 384],
        "my/volumes": [1, 16],
        "my/wrapped": [1, 8],
    }


def test_the_pages_command_builds_the_pages_function_and_its_call_serves_it(folder: Path) -> None:
    assert BUILD is not None
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BACKBONE_ARTIFACTS": str(folder / "artifacts")}
    [call] = [code for marks, code in BLOCKS if "no-run" in marks]

    built = subprocess.run(
        [sys.executable, *BUILD[1].split(), "--format=onnx"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    served = subprocess.run(
        [sys.executable, "-c", f"{call}\nprint(model.backend)"],
        cwd=folder,
        env={**environment, "BACKBONE_ON_FALLBACK": "error"},
        capture_output=True,
        text=True,
    )

    assert built.returncode == 0, built.stdout + built.stderr
    assert served.stdout == "onnx\n", served.stderr
