"""The doctor: what it makes of facts (tables, no machine), and which facts it finds (real ones)."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import onnx
import pytest
from environments import BLOCK, ROOT, Environment, work_folder
from huggingface_hub import constants
from loopback import Answer, Loopback, serving
from stores import NAME, graph_of
from terminal import run

from runtime.artifacts import MANIFEST, Store
from runtime.doctor import examination
from runtime.doctor.checks import examine
from runtime.doctor.facts import Extra, Facts, Gpu, Host, Hub, StoredModel, StoreFacts
from runtime.doctor.probes import GRAPH, Probed, how_it_ended, probe
from runtime.doctor.stored import look_at_store
from runtime.manifest import RECIPE
from runtime.terminal import doctor

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
MESSAGE = (
    "\x1b[1;31m2026-01-01 00:00:00.0 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed to "
    "load library /x/libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared object file: No "
    "such file or directory\n\x1b[m\nRequire cuDNN 9.* and CUDA 13.*."
)
WITH_CUDA = Probed({"version": "1.31", "built_with": [CUDA, CPU], "started": [CUDA, CPU]})
ON_CPU = Probed({"version": "1.31", "built_with": [CPU], "started": [CPU]})
NOT_STARTED = Probed({"version": "1.31", "built_with": [CUDA, CPU], "started": [CPU]}, MESSAGE)
TORCH = Probed({"versions": {"torch": "2.15", "timm": "1.0"}, "built_for": "13.0", "cuda": True})
H200 = Gpu(True, "13000", ("NVIDIA H200",))

# A machine with nothing wrong.
SOUND = Facts(
    host=Host("CPython 3.11", "Linux x86_64", 8, "0.1.0", 55),
    gpu=H200,
    wheels={"onnxruntime-gpu": "1.31"},
    store=StoreFacts("/data", "--artifacts", models=(StoredModel("a/b", artifacts=1, bytes=10),)),
    hub=Hub("https://hub", token=True, status=200, user="ada"),
    extras=(Extra("gpu", ("onnxruntime-gpu",)),),
    onnxruntime=WITH_CUDA,
    torch=TORCH,
)


def host(**facts: Any) -> dict[str, Any]:
    return {"host": replace(SOUND.host, **facts)}


def store(**facts: Any) -> dict[str, Any]:
    return {"store": replace(SOUND.store, **facts)}


def hub(**facts: Any) -> dict[str, Any]:
    return {"hub": replace(SOUND.hub, **facts)}


def model(**facts: Any) -> dict[str, Any]:
    return store(models=(replace(SOUND.store.models[0], **facts),))


@pytest.mark.parametrize(
    ("changed", "status", "topic", "says", "fix"),
    [
        (host(on_fallback="never"), "FAIL", "settings", "BACKBONE_ON_FALLBACK=never", "set it to warn or error"),
        (host(broken_plugins=("plugin 'x' is broken",)), "WARN", "registry", "plugin 'x' is broken", "uninstall"),
        (
            {"wheels": {"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"}},
            "FAIL",
            "onnxruntime",
            "onnxruntime 1.30, onnxruntime-gpu 1.31 are installed",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'backbone-runtime[gpu]'",
        ),
        ({"wheels": {}, "onnxruntime": None}, "WARN", "onnxruntime", "not installed", "backbone-runtime[cpu]"),
        ({"onnxruntime": Probed(trouble="killed")}, "FAIL", "onnxruntime", "does not run: killed", "pip uninstall -y"),
        (
            {"wheels": {}, "onnxruntime": None, "torch": None},
            "FAIL",
            "backends",
            "none of onnxruntime, openvino and torch runs",
            "backbone-runtime[gpu]",
        ),
        ({"gpu": Gpu(True, "13000")}, "WARN", "driver", "shows no GPU", "--gpus all"),
        (
            {"onnxruntime": NOT_STARTED},
            "FAIL",
            "cuda",
            "does not start: libcudnn.so.9: cannot open shared object file: No such file or directory",
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
        (
            {"onnxruntime": ON_CPU, "wheels": {"onnxruntime": "1.31"}},
            "WARN",
            "cuda",
            "built without CUDA",
            "pip uninstall -y onnxruntime, then pip install 'backbone-runtime[gpu]'",
        ),
        ({"openvino": Probed(trouble="it ended")}, "FAIL", "openvino", "does not run: it ended", "force-reinstall"),
        ({"torch": Probed(trouble="no nms")}, "FAIL", "torch", "cannot be imported: no nms", "torchvision"),
        (
            {"torch": Probed({**TORCH.told, "cuda": False})},
            "WARN",
            "torch",
            "built for CUDA 13.0: it cannot use the GPU",
            "install a torch",
        ),
        (
            {"extras": (Extra("eager", ("torch", "timm"), (), ("torch 2.0 (wanted: >=2.9)",)),)},
            "WARN",
            "extras",
            "torch 2.0 (wanted: >=2.9)",
            "pip install --upgrade 'backbone-runtime[eager]'",
        ),
        (store(exists=False), "WARN", "artifacts", "does not exist yet", "python -m exporters.build"),
        (store(unreadable="denied"), "FAIL", "artifacts", "cannot be read: denied", "BACKBONE_ARTIFACTS"),
        (store(unwritable="full"), "WARN", "artifacts", "cannot be written: full", "free space"),
        (
            store(fetched=2),
            "WARN",
            "leftovers",
            "pulls of 2 models are going on, or were given up",
            "runtime.pull again",
        ),
        (store(unfinished=2), "WARN", "leftovers", "2 builds are going on, or were killed", "exporters.prune"),
        (model(problem="not JSON"), "FAIL", "manifest", "not JSON", "python -m exporters.build a/b"),
        (
            model(damaged=("w.data is missing",), rebuild=("build a/b --force",)),
            "FAIL",
            "files",
            "a/b: w.data is missing",
            "build a/b --force",
        ),
        (model(outdated=("build a/b",)), "WARN", "recipe", "another recipe of graphs made 1 of 1", "build a/b"),
        (model(registered=False), "WARN", "registry", "a/b is built, and not registered here", "--import"),
        (model(unlisted=3_000_000), "WARN", "leftovers", "3.0 MB are files that no manifest lists", "exporters.prune"),
        (hub(status=None, trouble="refused"), "WARN", "hub", "https://hub cannot be used: refused", "HF_ENDPOINT"),
        (hub(status=503), "WARN", "hub", "answers with status 503", "HF_ENDPOINT"),
        (hub(status=401), "FAIL", "hub", "refuses the token (status 401)", "hf auth login"),
        (hub(status=401, token=False, user=None), "WARN", "hub", "there is no token", "HF_TOKEN"),
    ],
)
def test_what_is_wrong_is_found_with_its_fix(
    changed: dict[str, Any], status: str, topic: str, says: str, fix: str
) -> None:
    wrong = [finding for finding in examine(replace(SOUND, **changed)) if finding.status != "PASS"]

    [found] = [finding for finding in wrong if finding.topic == topic]
    assert found.status == status
    assert says in found.says
    assert found.fix is not None
    assert fix in found.fix
    # A FAIL brings no others with it, but that where nothing runs the wheel is missing, too.
    assert [finding.topic for finding in wrong if finding.topic != topic] in ([], ["onnxruntime"])


@pytest.mark.parametrize(
    ("changed", "topic", "says"),
    [
        ({}, "cuda", "the CUDA provider starts; a convolution and a matrix product ran on it"),
        ({}, "driver", "an NVIDIA driver for CUDA 13, with NVIDIA H200"),
        ({"gpu": Gpu()}, "driver", "no NVIDIA driver here"),
        ({"gpu": Gpu(), "onnxruntime": NOT_STARTED}, "cuda", "libcudnn.so.9: cannot open shared object file"),
        ({"torch": None}, "torch", "not installed, nor needed"),
        ({"torch": Probed({**TORCH.told, "built_for": None}), "gpu": Gpu()}, "torch", "built for CPUs"),
        ({"openvino": Probed({"version": "1", "capabilities": ["FP32", "BF16"]})}, "openvino", "instructions for BF16"),
        ({"openvino": Probed({"version": "1", "capabilities": ["FP32"]})}, "openvino", "none for BF16 or INT8"),
        (hub(offline=True, status=None), "hub", "offline mode"),
        ({}, "hub", "https://hub answers; the token is ada's"),
        ({}, "files", "the size of every file"),
        (store(remote=True), "artifacts", "is a repository: load_model fetches from it what serves"),
        (store(hashed=True), "files", "the SHA-256 of every file is as it says"),
        (model(versions=({"torch": "2.15", "recipe": "3"},)), "built with", "recipe 3, torch 2.15: a/b"),
        (
            {"extras": (Extra("gpu", ("o",)), Extra("wsi", ("a",), ("b",)), Extra("ray", (), ("c",)))},
            "extras",
            "installed: gpu; in part: wsi (lacks b); not installed: ray",
        ),
    ],
)
def test_what_is_sound_passes_and_is_told(changed: dict[str, Any], topic: str, says: str) -> None:
    findings = examine(replace(SOUND, **changed))

    assert {finding.status for finding in findings} == {"PASS"}
    assert says in next(finding.says for finding in findings if finding.topic == topic)


def test_the_probe_is_a_convolution_and_a_matrix_product() -> None:
    model = onnx.load_from_string(GRAPH)

    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "MatMul"]


def test_onnxruntime_is_tried_in_a_process_of_its_own() -> None:
    found = probe("onnxruntime")

    assert found.trouble is None, found
    assert found.told["started"][-1] == CPU
    assert set(found.told["started"]) <= set(found.told["built_with"])


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by signal 11"),
        ("raise ImportError('undefined symbol: x')", "it ended with status 1: ImportError: undefined symbol: x"),
        ("import time; time.sleep(60)", "it gave no answer within 1 s"),
    ],
)
def test_a_library_that_crashes_or_hangs_is_told_and_takes_nobody_along(
    body: str, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    assert probe("openvino", seconds=1 if "sleep" in body else 60).trouble == trouble


def test_what_a_process_printed_last_tells_how_it_ended() -> None:
    assert how_it_ended(3, "first\n\nlast \n") == "it ended with status 3: last"
    assert how_it_ended(-9, "") == "it was killed by signal 9"


def test_the_extras_are_those_of_the_package_with_what_they_bring() -> None:
    extras = {extra.name: extra for extra in examination.look_at_extras()}

    assert {"gpu", "eager", "transformers", "export"} <= set(extras)
    assert "dev" not in extras
    assert {"torch", "timm", "transformers"} <= {*extras["transformers"].present, *extras["transformers"].missing}
    assert "torch" in extras["eager"].present
    assert all(extra.outdated == () for extra in extras.values())


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


def test_a_sound_folder_of_artifacts_is_told_as_it_is(copy: Store) -> None:
    found = look_at_store(str(copy.root), full=True)

    [model] = found.models
    assert (model.name, model.artifacts, model.problem, model.damaged, model.unlisted) == (NAME, 4, None, (), 0)
    assert (model.outdated, model.registered) == ((), True)
    assert model.bytes == sum(p.stat().st_size for p in copy.folder(NAME).iterdir() if p.name != MANIFEST)
    assert [versions["recipe"] for versions in model.versions] == [str(RECIPE)] * 2
    assert (found.unreadable, found.unwritable, found.hashed, found.named_by) == (None, None, True, "--artifacts")


def test_damage_is_found_with_the_commands_that_mend_it(copy: Store) -> None:
    graph = graph_of(copy, "onnx")
    graph.write_bytes(b"x" * graph.stat().st_size)

    [by_size], [by_hash] = look_at_store(str(copy.root)).models, look_at_store(str(copy.root), full=True).models

    assert by_size.damaged == ()
    assert by_hash.damaged == (
        f"{graph.name} has another SHA-256 than the manifest says: it was altered or the disk is failing",
    )
    [command] = by_hash.rebuild
    assert command.startswith(f"python -m exporters.build {NAME} --format=onnx --target=cpu --out-indices=none")
    assert command.endswith(f"--artifacts={copy.root} --force")


def test_leftovers_other_recipes_and_unknown_names_are_found(copy: Store) -> None:
    (copy.folder(NAME) / "weights.000000000000.data").write_bytes(b"123")
    (copy.root / ".staging/test--own/test/own").mkdir(parents=True)
    (copy.root / ".downloads/test--own/our-lab--backbones").mkdir(parents=True)
    manifest = json.loads((copy.folder(NAME) / MANIFEST).read_text())
    manifest["artifacts"][0]["versions"]["recipe"] = "1"
    (copy.folder(NAME) / MANIFEST).write_text(json.dumps(manifest))
    other = copy.root / "nobody/knows"
    other.mkdir(parents=True)
    (other / MANIFEST).write_text(json.dumps({"schema_version": 2, "model": "nobody/knows", "artifacts": []}))
    broken = copy.root / "test/own"
    broken.mkdir()
    (broken / MANIFEST).write_text("{")

    found = look_at_store(str(copy.root))

    models = {model.name: model for model in found.models}
    assert set(models) == {NAME, "nobody/knows", "test/own"}
    assert (models[NAME].unlisted, len(models[NAME].outdated)) == (3, 1)
    assert not models["nobody/knows"].registered
    assert "is not a valid manifest" in str(models["test/own"].problem)
    assert (found.unfinished, found.fetched) == (1, 1)


def test_a_repository_of_the_hub_is_told_as_one() -> None:
    found = look_at_store("hf://our-lab/backbones@v1")

    assert (found.root, found.remote) == ("hf://our-lab/backbones@v1", True)


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    found = look_at_store(str(tmp_path / "none"))

    assert not found.exists
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A hub on this machine, in the place of the real one."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.close_session()  # the one that was made offline
        yield server
        huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("token", "answer", "status", "user"),
    [
        ("secret", Answer(json.dumps({"name": "ada"}).encode()), 200, "ada"),
        ("wrong", Answer(b"{}", status=401), 401, None),
        (None, Answer(b"no JSON", status=401), 401, None),
        (None, Answer(b"busy", status=503), 503, None),
    ],
)
def test_the_hub_is_asked_who_we_are(
    token: str | None,
    answer: Answer,
    status: int,
    user: str | None,
    loopback: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    loopback.answers["/api/whoami-v2"] = answer

    assert examination.look_at_hub() == Hub(loopback.url, token=token is not None, status=status, user=user)
    assert loopback.requests[-1] == "GET /api/whoami-v2"  # before its first request the client asks other things
    assert loopback.asked[-1].get("authorization") == (f"Bearer {token}" if token else None)


def test_a_hub_that_cannot_be_reached_is_told(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    found = examination.look_at_hub()

    assert found.status is None
    assert "Connect" in str(found.trouble)


def test_offline_mode_asks_nothing(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert examination.look_at_hub().offline
    assert loopback.requests == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's probe: importing it takes long, and here it is known to work."""
    monkeypatch.setattr(examination, "installed", lambda name: name == "onnxruntime")


def test_the_command_ends_by_what_it_found(copy: Store, quick: None) -> None:
    sound = run(doctor.main, "--artifacts", copy.root, "--hash")
    graph_of(copy, "onnx").unlink()
    damaged = run(doctor.main, "--artifacts", copy.root)

    assert (sound.status, damaged.status) == (0, 1)
    assert "PASS  files        every manifest is valid, and the SHA-256 of every file is as it says" in sound.out
    assert sound.out.splitlines()[-1].startswith("0 FAIL, ")
    assert f"FAIL  files        {NAME}: " in damaged.out
    assert "\n                   fix: python -m exporters.build test/tiny_vit --format=onnx" in damaged.out


def test_the_command_tells_json(copy: Store, quick: None) -> None:
    ran = run(doctor.main, "--artifacts", copy.root, "--json")

    assert ran.status == 0
    assert {tuple(sorted(line)) for line in ran.lines} == {("fix", "says", "status", "topic")}
    assert {"host", "onnxruntime", "artifacts", "hub"} <= {line["topic"] for line in ran.lines}


def test_the_doctor_needs_no_torch(built: Path, tmp_path: Path) -> None:
    here = Environment(Path(sys.executable), work_folder(tmp_path))
    code = (
        BLOCK
        + f"""
import runpy
sys.argv = ["runtime", "doctor", "--artifacts", {str(built)!r}, "--import", "plugin", "--json"]
runpy.run_module("runtime", run_name="__main__")
"""
    )

    ran = here.run("-c", code, HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))

    assert ran.returncode == 0, ran.stderr
    told = {line["topic"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert "not installed, nor needed" in told["torch"]["says"]
    assert told["onnxruntime"]["status"] == told["files"]["status"] == "PASS"
