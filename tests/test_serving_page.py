"""The page on serving: its client asks a server on this machine, its commands are what the parsers know."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
import tritonclient.grpc
import yaml
from conftest import request_for
from PIL import Image
from tritonclient.utils import InferenceServerException

from exporters import pipeline, triton
from exporters.arguments import parser_of_build
from exporters.plan import Job
from exporters.serving.arguments import parser_of_triton
from runtime import load_model
from runtime.arguments import join_negative
from runtime.manifest import Form

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text()
CODE = re.search(r"^```python file=triton_client\.py\n((?:.*\n)*?)^```$", PAGE, re.MULTILINE)
NAME = "test/tiny_vit"


@pytest.fixture(scope="module")
def models(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the embedding of floats and of pictures, and the feature maps."""
    folder = tmp_path_factory.mktemp("models")
    own = tmp_path_factory.mktemp("store")
    job = Job(request_for(NAME, weights="random", artifacts=str(own)), (Form("onnx", input="uint8"),))
    assert [outcome.status for outcome in pipeline.build(job)] == ["built"]
    common = [NAME, "--repository", str(folder), "--weights", "random", "--target", "cpu", "--max-batch-size", "8"]
    for store, arguments in ((built, []), (built, ["--out-indices", "2"]), (own, ["--input", "uint8"])):
        assert triton.main([*common, "--artifacts", str(store), *arguments]) == 0
    return folder


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """The page's client, where a reader would save it."""
    assert CODE is not None
    path = tmp_path / "triton_client.py"
    path.write_text(CODE[1])
    return path


def pictures(folder: Path, count: int = 3) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def ask(client: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, client, *map(str, arguments)],
        cwd=client.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "out_indices"),
    [
        ("test--tiny_vit--random", None),
        ("test--tiny_vit--last2--random", 2),
        ("test--tiny_vit--uint8--random", None),
    ],
)
def test_the_client_of_the_page_gets_the_eager_numbers(name: str, out_indices: Any, models: Path, client: Path) -> None:
    files = pictures(client.parent)

    with triton_server.serving(models) as (address, server):
        ran = ask(client, address, name, *files)

    assert ran.returncode == 0, ran.stderr
    assert server.batches == [3]
    eager = load_model(NAME, backend="eager", weights="random", device="cpu", out_indices=out_indices)
    expected = eager(eager.preprocess([Image.open(file) for file in files]))
    expected = [expected] if out_indices is None else expected
    got = [np.load(client.parent / f"output{number}.npy") for number in range(len(expected))]
    assert [array.shape for array in got] == [array.shape for array in expected]
    for a, b in zip(got, expected, strict=True):
        assert np.sqrt(((a - b) ** 2).mean() / (b**2).mean()) < 1e-5


def test_the_client_needs_neither_torch_nor_onnxruntime(client: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnxruntime", "onnx", "timm"):
    sys.modules[name] = None
exec(compile(open({str(client)!r}).read(), "client", "exec"), {{"__name__": "client"}})
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("test--tiny_vit--random", (9, 3, 32, 32), "batch-size must be <= 8"),
        ("test--tiny_vit--random", (1, 3, 16, 16), "unexpected shape for input"),
        ("test--tiny_vit", (1, 3, 32, 32), "is not found"),
    ],
)
def test_the_configuration_lets_a_server_refuse_what_the_graph_cannot_take(
    name: str, shape: Any, words: str, models: Path
) -> None:
    given = tritonclient.grpc.InferInput("images", shape, "FP32")
    given.set_data_from_numpy(np.zeros(shape, np.float32))

    with triton_server.serving(models) as (address, _):
        asked = tritonclient.grpc.InferenceServerClient(address)
        with pytest.raises(InferenceServerException, match=words):
            asked.infer(name, [given])
        asked.close()


def test_every_command_of_the_page_can_be_parsed() -> None:
    parsers = {"exporters.build": parser_of_build(), "exporters.triton": parser_of_triton()}
    commands = re.findall(r"^\$ python -m (exporters\.\w+) (.+)$", PAGE, re.MULTILINE)

    assert {module for module, _ in commands} == set(parsers)
    for module, arguments in commands:
        parsers[module].parse_args(join_negative(shlex.split(arguments)))


def test_the_page_names_every_option_that_decides_how_triton_runs_a_model() -> None:
    options = [action.option_strings[0] for action in parser_of_triton()._actions if action.option_strings]

    left_out = {"-h", "--weights", "--seed", "--option", "--artifacts", "--import", "--json"}
    assert [option for option in options if option not in left_out and option not in PAGE] == []


def test_the_arguments_of_the_page_are_those_of_the_application() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own use of pydantic
        from runtime import ray_serve

    block = re.search(r"^```yaml\n((?:.*\n)*?)^```$", PAGE, re.MULTILINE)
    assert block is not None
    [application] = yaml.safe_load(block[1])["applications"]
    typed = dict(word.split("=") for word in shlex.split(PAGE.partition("runtime.ray_serve:app ")[2].splitlines()[0]))

    assert application["import_path"] == "runtime.ray_serve:app"
    assert ray_serve.parse(application["args"]).num_replicas == 2
    assert ray_serve.parse(typed).threads == 4
    table = PAGE.partition("| Argument | Meaning |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)", "".join(row.split("|")[1] for row in table.splitlines()[2:] if row)))
    assert named == set(ray_serve.Options.__dataclass_fields__)
