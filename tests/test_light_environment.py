"""Where torch is not: the installed wheel in fresh environments, and this one with torch blocked."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uv
from environments import BLOCK, HEAVY, ROOT, SERVE, Environment, images, install, work_folder

from runtime import __version__, load_model, ranking


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves its traces beside the sources."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "artifacts", "demo")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [uv.find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", out, source]
    subprocess.run(command, check=True, timeout=300)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The wheel with the extra `cpu`."""
    environment = install(tmp_path_factory.mktemp("light"), f"{wheel}[cpu]")
    yield environment
    shutil.rmtree(environment.folder)


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The wheel without any extra."""
    environment = install(tmp_path_factory.mktemp("bare"), str(wheel))
    yield environment
    shutil.rmtree(environment.folder)


@pytest.fixture
def here(tmp_path: Path) -> Environment:
    """This very environment, with torch."""
    return Environment(Path(sys.executable), work_folder(tmp_path))


def assert_eager_numbers(environment: Environment) -> None:
    """Compare what the child process served with this environment's eager torch."""
    options = {"backend": "eager", "weights": "random", "device": "cpu"}
    embedding = load_model("test/tiny_vit", **options)(images())
    maps = load_model("test/tiny_vit", out_indices=2, **options)(images())
    with np.load(environment.folder / "served.npz") as served:
        assert len(served.files) == 3
        for expected, name in zip([embedding, *maps], served.files, strict=True):
            difference = np.sqrt(((served[name] - expected) ** 2).mean() / (expected**2).mean())
            assert difference < 1e-5


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    about = f"backbone_runtime-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"runtime", "exporters", about}
    assert {"runtime/py.typed", "exporters/py.typed", "exporters/verification_tile.png"} <= set(names)
    assert f"{about}/licenses/LICENSE" in names
    modules = {str(p.relative_to(ROOT)) for package in ("runtime", "exporters") for p in (ROOT / package).rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_every_name_is_listed_where_torch_is_not_installed(light: Environment, here: Environment) -> None:
    code = f"""
import importlib.util, json, runtime
heavy = [name for name in {(*HEAVY, "torchvision")} if importlib.util.find_spec(name)]
print(json.dumps({{"heavy": heavy, "names": runtime.list_models(), "file": runtime.__file__}}))
"""

    told = light.tell(code)

    assert told["heavy"] == []
    assert told["names"] == here.tell(code)["names"] != []
    assert Path(told["file"]).is_relative_to(light.python.parent.parent)


def test_all_of_timm_is_known_where_timm_is_not_installed(light: Environment) -> None:
    code = """
import json, runtime
from runtime.registry import find
spec = find("timm/vit_small_patch16_224.dino")
print(json.dumps([runtime.list_models("timm/vit_small_patch16_224*"), spec.depth, spec.preprocessing.size]))
"""

    names, depth, size = light.tell(code)

    assert "timm/vit_small_patch16_224" in names
    assert (depth, size) == (12, 224)


def test_an_artifact_is_served_where_torch_is_not_installed(light: Environment, built: Path) -> None:
    told = light.tell(SERVE, str(built))

    assert told == {"backends": ["onnx", "onnx"], "device": "cpu", "heavy": []}
    assert_eager_numbers(light)


def test_pictures_are_preprocessed_where_torch_is_not_installed(light: Environment, built: Path) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.save(light.folder / "picture.npy", picture)
    code = """
import json, sys
import numpy as np
import plugin
from runtime import load_model
model = load_model("test/tiny_vit", backend="onnx", weights="random", artifacts=sys.argv[1])
np.save("input.npy", model.preprocess(np.load("picture.npy")))
print(json.dumps(list(model(np.load("input.npy")).shape)))
"""

    assert light.tell(code, str(built)) == [1, 48]

    expected = load_model("test/tiny_vit", backend="eager", weights="random").preprocess(picture)
    np.testing.assert_array_equal(np.load(light.folder / "input.npy"), expected)


def test_a_pickled_backbone_serves_in_a_fresh_process_without_torch(light: Environment, built: Path) -> None:
    dump = """
import json, pickle, sys
from pathlib import Path
import numpy as np
import plugin
from runtime import load_model
model = load_model("test/tiny_vit", backend="onnx", weights="random", artifacts=sys.argv[1])
Path("model.pickle").write_bytes(pickle.dumps(model))
print(json.dumps(model(np.load("images.npy")).tolist()))
"""
    restore = """
import json, pickle
from pathlib import Path
import numpy as np
model = pickle.loads(Path("model.pickle").read_bytes())
print(json.dumps(model(np.load("images.npy")).tolist()))
"""

    numbers = light.tell(dump, str(built))

    assert light.tell(restore) == numbers


def test_without_artifact_and_torch_the_error_says_how_to_get_either(light: Environment, tmp_path: Path) -> None:
    kind, message = light.failure(f"load_model('test/tiny_vit', weights='random', artifacts={str(tmp_path)!r})")

    assert kind == "ArtifactNotFoundError"
    assert (
        f"No onnx artifact of 'test/tiny_vit' for embedding, onnx for cpu, fp32, 32x32, random:0 weights in {tmp_path}"
        in message
    )
    command = "python -m exporters.build test/tiny_vit --format=onnx --target=cpu --out-indices=none --weights=random"
    assert command in message
    assert "torch is not installed: pip install 'backbone-runtime[eager]'" in message


@pytest.mark.parametrize(
    "call",
    [
        "load_model('test/tiny_vit', backend='eager')",
        "load_model('test/tiny_vit', backend='torchscript')",
        "from runtime import ModelFromRegistry",
    ],
)
def test_what_needs_torch_names_the_extra_that_brings_it(light: Environment, call: str) -> None:
    kind, message = light.failure(call)

    assert kind == "DependencyError"
    assert "torch is not installed: pip install 'backbone-runtime[eager]'" in message


def script(environment: Environment, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run an installed console script."""
    return environment.run(str(environment.python.with_name(name)), *map(str, arguments))


def test_the_installed_commands_work_where_torch_is_not(light: Environment, built: Path) -> None:
    store = ("--artifacts", built)

    examined = script(light, "backbone", "doctor", "--hash", "--import", "plugin", *store, "--json")
    listed = script(light, "backbone", "list", "--built", *store, "--json")
    explained = script(
        light, "backbone", "info", "test/tiny_vit", "--weights=random", "--import=plugin", *store, "--json"
    )
    hashed = script(light, "backbone-verify", "--hash", *store, "--json")
    pruned = script(light, "backbone-prune", "--dry-run", *store, "--json")

    for ran in (examined, listed, explained, hashed, pruned):
        assert ran.returncode == 0, (ran.stdout, ran.stderr)
    findings = {line["topic"]: line for line in map(json.loads, examined.stdout.splitlines())}
    assert findings["onnxruntime"]["says"].startswith("onnxruntime ")
    assert findings["files"]["status"] == "PASS"
    assert "installed: cpu; " in findings["extras"]["says"]
    assert json.loads(listed.stdout)["model"] == "test/tiny_vit"
    assert json.loads(explained.stdout)["serves"] == "onnx"
    assert [json.loads(line)["status"] for line in hashed.stdout.splitlines()] == ["verified"] * 4


def test_every_installed_command_tells_its_help_where_torch_is_not(light: Environment) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

    for name in scripts:
        ran = script(light, name, "--help")
        assert (ran.returncode, ran.stderr) == (0, ""), name
        assert ran.stdout.startswith("usage: python -m "), name


def test_building_without_its_packages_is_one_line_and_exit_status_2(light: Environment) -> None:
    result = light.run("-m", "exporters.build", "pathology/kaiko_vits16")

    assert light.run("-m", "exporters.build", "--help").returncode == 0
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "torch, timm, safetensors, onnx" in result.stderr
    assert "pip install 'backbone-runtime[export]'" in result.stderr


def test_an_installed_wheel_keeps_its_artifacts_in_the_user_data_folder(light: Environment, tmp_path: Path) -> None:
    code = "import json; from runtime.artifacts import default_root; print(json.dumps(str(default_root())))"

    assert light.tell(code, XDG_DATA_HOME=str(tmp_path)) == str(tmp_path / "backbone-runtime" / "artifacts")


def test_the_onnx_backend_without_onnxruntime_names_both_extras(bare: Environment, built: Path) -> None:
    call = f"load_model('test/tiny_vit', weights='random', artifacts={str(built)!r}, backend='onnx')"

    kind, message = bare.failure(call)

    assert kind == "DependencyError"
    assert "needs onnxruntime, which is not installed" in message
    assert "'backbone-runtime[gpu]'" in message
    assert "'backbone-runtime[cpu]'" in message


def test_where_nothing_can_run_the_error_names_every_extra(bare: Environment) -> None:
    kind, message = bare.failure("load_model('test/tiny_vit')")

    assert kind == "DependencyError"
    for extra in ("gpu", "cpu", "eager"):
        assert f"'backbone-runtime[{extra}]'" in message


def test_two_onnxruntime_wheels_are_refused_with_the_commands_that_mend_it(light: Environment) -> None:
    packages = light.tell("import json, sysconfig; print(json.dumps(sysconfig.get_path('purelib')))")
    second = Path(packages) / "onnxruntime_gpu-1.31.1.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    try:
        kind, message = light.failure("load_model('test/tiny_vit', backend='onnx')")
    finally:
        shutil.rmtree(second)

    assert kind == "DependencyError"
    assert "onnxruntime and onnxruntime-gpu are both installed" in message
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in message
    assert "pip install 'backbone-runtime[gpu]'" in message


def test_an_artifact_is_served_with_torch_and_its_kin_blocked(here: Environment, built: Path) -> None:
    told = here.tell(BLOCK + SERVE, str(built))

    assert told["backends"] == ["onnx", ranking.order("cpu", "fp32")[0]]  # named, and chosen by measurement
    assert_eager_numbers(here)


def test_serving_an_artifact_imports_no_torch_though_it_is_installed(here: Environment, built: Path) -> None:
    assert here.tell(SERVE, str(built))["heavy"] == []
    assert_eager_numbers(here)
