"""`python -m exporters.verify`: the gate of a build, again, on what is published."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import TINY
from conftest import request_for
from environments import BLOCK, ROOT, Environment, work_folder
from stores import NAME, graph_of, list_as_it_is, published, republish, weights_of
from terminal import run

from exporters import trial, variants, verify
from exporters.plan import Job, Outcome
from exporters.published import verify as verify_here
from exporters.trial import obstacle
from runtime.artifacts import MANIFEST, Store
from runtime.manifest import Form, Manifest


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


def contents(store: Store) -> dict[str, bytes]:
    return {str(path.relative_to(store.root)): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def again(store: Store, *forms: Form, **asked: object) -> list[Outcome]:
    """Verify the embedding in this process."""
    request = request_for(NAME, weights="random", artifacts=str(store.root), **asked)
    return verify_here(Job(request, forms or (Form("onnx"),), task="verify"))


def test_what_was_built_here_passes_again_and_is_left_as_it_is(store: Store) -> None:
    before = contents(store)

    ran = run(verify.main, "test/*", *TINY, "--artifacts", store.root, "--json")

    assert ran.status == 0, ran.err
    told = {(line["variant"], line["format"]): line for line in ran.lines}
    assert set(told) == {(variant, format) for variant in ("embedding", "2") for format in ("onnx", "torchscript")}
    assert {line["status"] for line in ran.lines} == {"verified"}
    assert told["embedding", "onnx"]["note"] == "onnx CPUExecutionProvider; openvino"
    assert told["2", "torchscript"]["note"] == "torchscript"
    for line in ran.lines:
        assert 0 <= line["relative_rms"] < 1e-5
        assert line["min_cosine"] > 0.999999
    assert contents(store) == before


def test_torch_convolves_in_full_precision_while_it_is_verified(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions = torch.backends.cudnn
    seen, run_it = [], trial._run
    monkeypatch.setattr(trial, "_run", lambda *given: (seen.append(convolutions.allow_tf32), run_it(*given))[1])

    assert [outcome.status for outcome in again(store, Form("torchscript"))] == ["verified"]

    assert set(seen) == {False}
    assert convolutions.allow_tf32 is True, "torch's default"


@pytest.mark.parametrize(
    "switch", ["cudnn.allow_tf32", "cudnn.conv.fp32_precision", "cudnn.fp32_precision", "fp32_precision"]
)
@pytest.mark.parametrize("fast", [True, False])
def test_whichever_of_torchs_switches_a_plugin_used_verification_is_in_full_precision(switch: str, fast: bool) -> None:
    value = fast if switch == "cudnn.allow_tf32" else "tf32" if fast else "ieee"
    code = f"""
import torch
from exporters.full_precision import torch_in_full_precision
torch.backends.{switch} = {value!r}
before = torch.backends.cudnn.conv.fp32_precision
with torch_in_full_precision():
    print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32)
print(torch.backends.cudnn.conv.fp32_precision == before)"""

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.stdout == "ieee False\nTrue\n", ran.stderr


def test_wrong_numbers_fail_though_every_hash_is_right(store: Store) -> None:
    weights = weights_of(store, "onnx")
    numbers = np.fromfile(weights, np.float32)
    (numbers * 1.001).astype(np.float32).tofile(weights)
    for format in ("onnx", "torchscript"):
        list_as_it_is(store, format)

    [outcome] = again(store)

    assert run(verify.main, "--hash", "--artifacts", store.root).status == 1  # the maps list the same file, as it was
    assert outcome.status == "failed"
    assert "embedding: relative RMS" in outcome.note
    assert outcome.relative_rms is not None
    assert outcome.relative_rms > 1e-5
    assert f"exporters.build {NAME} --format=onnx --target=cpu --out-indices=none --weights=random" in outcome.detail
    assert outcome.detail.endswith("--force")


def test_an_altered_file_fails_before_it_is_served(store: Store) -> None:
    graph = graph_of(store, "onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")

    [outcome] = again(store)

    assert outcome.status == "failed"
    assert f"{graph.name} has another SHA-256 than the manifest says" in outcome.note


def test_other_weights_than_those_built_from_are_told(store: Store) -> None:
    old = published(store, "onnx")
    republish(store, old, replace(old, facts={**old.facts, "source": {**old.facts["source"], "revision": "abc"}}))

    [outcome] = again(store)

    assert outcome.status == "failed"
    assert "built from revision abc of the weights, and eager now loads revision None" in outcome.note


def test_a_device_that_does_not_start_is_not_the_artifacts_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "nvidia_driver", lambda: False)

    ran = run(verify.main, *TINY, "--artifacts", store.root, "--device", "cuda")

    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "error: --device cuda: no NVIDIA driver is present (libcuda cannot be loaded).\n"


def test_hashes_are_compared_and_the_file_that_differs_is_named(store: Store) -> None:
    graph = graph_of(store, "torchscript")
    sound = run(verify.main, "--hash", "--artifacts", store.root, "--json")
    graph.write_bytes(b"x" * graph.stat().st_size)

    ran = run(verify.main, "--hash", "--artifacts", store.root, "--json")

    assert (sound.status, [line["status"] for line in sound.lines]) == (0, ["verified"] * 4)
    assert ran.status == 1
    [failed] = [line for line in ran.lines if line["status"] == "failed"]
    assert (failed["variant"], failed["format"]) == ("embedding", "torchscript")
    assert failed["note"].startswith(f"{graph.name} has another SHA-256")


def test_a_manifest_that_cannot_be_used_does_not_hold_up_the_rest(store: Store) -> None:
    broken = store.root / "test/broken"
    broken.mkdir()
    (broken / MANIFEST).write_text("[]")

    ran = run(verify.main, "--hash", "--artifacts", store.root, "--json")

    assert ran.status == 1
    assert [line["status"] for line in ran.lines] == ["verified"] * 4
    assert "test/broken/manifest.json is not a valid manifest" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--import", "broken_module"], "'broken_module', to register more backbones: NameError: name 'undefined'"),
        (["test/none"], "Nothing is published as 'test/none' in"),
        (["test/*", "no/*"], "Nothing is published as 'no/*' in"),
        (["--device", "tpu"], "device='tpu' is not a device"),
        (
            ["--import", "no_such_module"],
            "'no_such_module', to register more backbones: No module named 'no_such_module'",
        ),
    ],
)
def test_wrong_usage_ends_with_status_2_and_says_why(
    arguments: list[str], says: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("undefined()")
    monkeypatch.chdir(tmp_path)
    ran = run(verify.main, *arguments, "--artifacts", built)

    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err


@pytest.mark.parametrize(
    ("form", "backend", "device", "why"),
    [
        (Form("onnx"), "onnx", "cpu", None),
        (Form("onnx"), "onnx", "cuda", None),
        (Form("onnx"), "openvino", "cuda", "openvino does not run fp32 on cuda"),
        (Form("onnx", "cpu", "int8"), "onnx", "cuda", "onnx does not run int8 on cuda"),
        (Form("onnx", "cuda", "fp16"), "onnx", "cuda", None),
        (Form("onnx", "cuda", "fp16"), "onnx", "cpu", None),  # emulated
        (Form("onnx", "cuda"), "onnx", "cpu", None),
        (Form("pt2", "cuda"), "pt2", "cpu", "it was compiled for cuda"),
        (Form("pt2", "cpu"), "pt2", "cuda", "it was compiled for cpu"),
        (Form("torchscript"), "torchscript", "cuda", None),
    ],
)
def test_where_an_artifact_can_be_tried_is_a_table(form: Form, backend: str, device: str, why: str | None) -> None:
    assert obstacle(form, backend, device) == why


def test_what_cannot_be_tried_on_a_device_is_skipped_with_the_reason(store: Store) -> None:
    old = published(store, "onnx")
    key = replace(old.key, precision="bf16")
    republish(store, old, replace(old, key=key))

    [outcome] = again(store, key.form, device="cuda")

    assert (outcome.status, outcome.note) == ("skipped", "openvino does not run bf16 on cuda")


def test_a_variant_is_one_job_with_all_its_forms(built: Path) -> None:
    store = Store(built)
    found, broken = variants.read(store, [NAME])

    jobs, outcomes = variants.plan_jobs(store, found, imports=("tiny_backbones",))

    assert (broken, outcomes) == ([], [])
    assert [(job.request.canonical, [form.format for form in job.forms]) for job in jobs] == [
        ((-2, -1), ["onnx", "torchscript"]),
        (None, ["onnx", "torchscript"]),
    ]
    assert {(job.task, job.imports, job.request.weights, job.request.seed) for job in jobs} == {
        ("verify", ("tiny_backbones",), "random", 0)
    }


@pytest.mark.parametrize(
    ("model", "weights", "status", "note"),
    [
        (NAME, "checkpoint:0123456789ab", "skipped", "built from a local file (checkpoint:0123456789ab)"),
        ("nobody/knows", "random:0", "failed", "No backbone is registered as 'nobody/knows'"),
        ("test/tiny_initial", "random:0", "failed", "as it is registered here answers to"),
    ],
)
def test_what_no_request_leads_to_gets_no_job_but_a_reason(
    model: str, weights: str, status: str, note: str, store: Store
) -> None:
    artifact = published(store, "onnx")
    entry = variants.Published(model, replace(artifact, key=replace(artifact.key, weights=weights)))

    jobs, [outcome] = variants.plan_jobs(store, [entry])

    assert jobs == []
    assert outcome.status == status
    assert note in outcome.note


def test_nothing_verified_is_a_failure(store: Store) -> None:
    (store.folder(NAME) / MANIFEST).write_text(Manifest(NAME).to_text())

    ran = run(verify.main, *TINY, "--artifacts", store.root)

    assert ran.status == 1
    assert ran.err == "error: nothing could be verified here\n"


def test_hashes_need_no_torch_and_the_gate_says_what_it_needs(built: Path, tmp_path: Path) -> None:
    here = Environment(Path(sys.executable), work_folder(tmp_path))
    code = BLOCK + "\nfrom exporters.verify import main\nsys.exit(main(sys.argv[1:]))"
    path = {"PYTHONPATH": str(ROOT)}

    hashed = here.run("-c", code, "--hash", "--artifacts", str(built), "--json", **path)
    compared = here.run("-c", code, "--artifacts", str(built), **path)

    assert hashed.returncode == 0, hashed.stderr
    assert [json.loads(line)["status"] for line in hashed.stdout.splitlines()] == ["verified"] * 4
    assert compared.returncode == 2
    assert "needs torch, timm, safetensors: pip install 'backbone-runtime[export]'" in compared.stderr
