"""The pages on eva: what they show is what the tests with the real package run."""

import ast
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from runtime import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("eva", "eva-migration")}
FRAGMENTS = re.findall(r"^```yaml file=(\S+)\n((?:.*\n)*?)^```$", PAGES["eva"], re.MULTILINE)
CODE = [code for page in PAGES.values() for code in re.findall(r"^```python\n((?:.*\n)*?)^```$", page, re.MULTILINE)]
README = (ROOT / "README.md").read_text()
FORMER = re.findall(r"^\| `([\w/.:-]+)`[^|]*\| `(\w+/\w+)` \|$", PAGES["eva-migration"], re.MULTILINE)
PINS = dict(
    line.split("==")
    for line in (ROOT / ".ci" / "eva-constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def test_the_yaml_shown_is_part_of_the_configurations_that_are_run() -> None:
    assert [name for name, _ in FRAGMENTS] == ["bach.yaml", "consep_online.yaml"]
    for name, fragment in FRAGMENTS:
        whole = (ROOT / "docs" / "eva" / name).read_text()
        depth = re.search(rf"^( +){fragment.partition(':')[0]}:$", whole, re.MULTILINE)
        assert depth is not None
        assert textwrap.indent(fragment, depth[1]) in whole


@pytest.mark.parametrize("name", ["bach", "consep", "consep_online"])
def test_every_configuration_is_linked_and_falls_back_to_nothing(name: str) -> None:
    text = (ROOT / "docs" / "eva" / f"{name}.yaml").read_text()

    assert f"(eva/{name}.yaml)" in PAGES["eva"]
    assert text.count("class_path: runtime.ModelFromRegistry") == 1
    assert "on_fallback: error" in text


@pytest.mark.parametrize("name", ["bach", "consep"])
def test_embeddings_of_two_models_are_kept_apart(name: str) -> None:
    """eva ends where it finds a manifest of embeddings."""
    (folder,) = re.findall(r"output_dir: (.+)$", (ROOT / "docs" / "eva" / f"{name}.yaml").read_text(), re.MULTILINE)

    assert "${oc.env:MODEL_NAME, " in folder


@pytest.mark.parametrize("page", [README, PAGES["eva"]], ids=["README", "eva"])
def test_an_example_with_evas_own_configuration_normalises_as_the_registry_declares(page: str) -> None:
    """eva's own default is ImageNet's, and a wrong one is silent."""
    (block,) = [
        block for block in re.findall(r"^```console\n((?:.*\n)*?)^```$", page, re.MULTILINE) if "eva predict" in block
    ]
    (name,) = re.findall(r"MODEL_NAME=(\S+)", block)
    facts = registry.find(name).preprocessing

    assert ast.literal_eval(*re.findall(r"NORMALIZE_MEAN='(.+?)'", block)) == list(facts.mean)
    assert ast.literal_eval(*re.findall(r"NORMALIZE_STD='(.+?)'", block)) == list(facts.std)


@pytest.mark.parametrize("code", CODE)
def test_the_code_of_the_pages_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})

    printed = capsys.readouterr().out
    assert ("export" in code) == ("export RESIZE_DIM=224 NORMALIZE_MEAN='[0.5, 0.5, 0.5]'" in printed)


@pytest.mark.parametrize(("former", "now"), FORMER)
def test_a_former_name_is_the_backbone_that_the_page_says(former: str, now: str) -> None:
    assert registry.find(former).name == now


def test_the_page_tells_of_the_former_names_that_eva_had() -> None:
    assert len(FORMER) == 5


def test_the_pins_of_evas_environment_are_what_the_page_promises() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["eva"]

    assert "jsonargparse[omegaconf]>=4.48,<4.49" in extra
    assert PINS["jsonargparse"].startswith("4.48.")
    assert f"`kaiko-eva` {PINS['kaiko-eva']}" in PAGES["eva"]
    assert {"torch", "timm", "onnxruntime", "lightning"} <= PINS.keys()
    assert "onnxruntime-gpu" not in PINS
