"""Which backend and artifact answer a request: a table, no machine."""

import re
from typing import Any

import pytest
from conftest import request_for

from runtime import ranking
from runtime.errors import DependencyError, DeviceError
from runtime.manifest import Artifact, Form, Manifest, StoredFile
from runtime.selection import Selection, candidates, consider, preference, select, unable

NAME = "test/tiny_vit"
ALL = (
    Form("onnx"),
    Form("onnx", "cuda"),
    Form("onnx", "cuda", "fp16"),
    Form("onnx", "cpu", "bf16"),
    Form("onnx", "cpu", "int8"),
    Form("onnx", "cpu", "fp32", "uint8"),
    Form("pt2", "cpu", "bf16"),
    Form("torchscript"),
)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "measurements", dict)


def choose(
    published: tuple[Form, ...], *, device: str = "cpu", without: tuple[str, ...] = (), **asked: Any
) -> Selection:
    request = request_for(NAME, weights="random", **asked)
    facts = {"also_served_by": {"openvino": []}}
    keys = map(request_for(NAME, weights="random").key, published)
    artifacts = [Artifact(key, (StoredFile("graph", 1, ""),), (), (), facts) for key in keys]
    obstacles = {backend: DependencyError(f"{backend} is missing") for backend in without}
    return select(request, Manifest(NAME, tuple(artifacts)), obstacles, lambda _: device)


@pytest.mark.parametrize(
    ("device", "asked", "without", "backend", "form"),
    [
        ("cpu", {}, (), "onnx", Form("onnx")),
        ("cuda", {}, (), "onnx", Form("onnx", "cuda")),
        ("cuda", {"precision": "fp16"}, (), "onnx", Form("onnx", "cuda", "fp16")),
        ("cpu", {"precision": "int8"}, (), "onnx", Form("onnx", "cpu", "int8")),
        ("cpu", {"precision": "int8", "backend": "openvino"}, (), "openvino", Form("onnx", "cpu", "int8")),
        ("cpu", {"precision": "bf16"}, (), "openvino", Form("onnx", "cpu", "bf16")),
        ("cpu", {"precision": "bf16"}, ("openvino",), "pt2", Form("pt2", "cpu", "bf16")),
        ("cpu", {"input": "uint8"}, (), "onnx", Form("onnx", "cpu", "fp32", "uint8")),
        ("cpu", {"input": "uint8", "backend": "torchscript"}, (), "torchscript", Form("torchscript")),
        ("cpu", {}, ("onnx", "openvino"), "torchscript", Form("torchscript")),
        ("cpu", {}, ("onnx",), "openvino", Form("onnx")),
        ("cpu", {"precision": "fp16", "backend": "eager"}, (), "eager", None),
        ("cuda", {"precision": "bf16"}, (), "eager", None),
    ],
)
def test_the_first_that_can_serve_is_taken(
    device: str, asked: dict[str, Any], without: tuple[str, ...], backend: str, form: Form | None
) -> None:
    chosen = choose(ALL, device=device, without=without, **asked)

    assert chosen.backend == backend
    assert (chosen.artifact.key.form if chosen.artifact else None) == form


MEASURED = {"source": "a report", "ranking": {"cpu": {"fp32": [{"backend": "openvino", "times_eager": 3.0}]}}}


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ({}, "openvino"),
        ({"load": "fast"}, "onnx"),
        ({"reuse_outputs": True}, "onnx"),
        ({"providers": ["CPUExecutionProvider"]}, "onnx"),
        ({"load": "throughput", "reuse_outputs": False}, "openvino"),
    ],
)
def test_what_only_onnxruntime_can_do_puts_onnx_before_what_was_measured_faster(
    asked: dict[str, Any], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "measurements", lambda: MEASURED)

    assert choose(ALL, **asked).backend == first
    assert choose(ALL, without=("onnx",), **asked).backend == "openvino"
    reason = preference(request_for(NAME, **asked), first, "cpu")
    assert bool(reason and "only onnxruntime can do that" in reason) == (first == "onnx")


def test_fp16_on_a_cpu_is_never_fallen_back_to() -> None:
    chosen = choose(ALL, precision="fp16")

    assert chosen.backend is None
    assert {type(reason) for reason in chosen.rejected} == {DeviceError}
    assert "backend='eager' would take minutes for precision='fp16' on device='cpu'" in str(chosen.reasons)


@pytest.mark.parametrize(("device", "only"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_float32_graph_made_for_another_device_serves_where_there_is_no_better(device: str, only: str) -> None:
    chosen = choose((Form("onnx", only),), device=device)

    assert chosen.artifact is not None
    assert chosen.artifact.key.target == only


def test_a_lower_precision_is_not_served_from_a_graph_made_for_another_device() -> None:
    chosen = choose((Form("onnx", "cpu", "int8"),), device="cuda", precision="int8", backend="auto")

    assert chosen.backend is None


@pytest.mark.parametrize(
    ("backend", "device", "precision", "says"),
    [
        ("onnx", "cpu", "fp16", r"where it runs fp32, int8\. .* fp16 runs with backend='eager'; .* device='cuda'\."),
        ("onnx", "cuda", "int8", r"where it runs fp32, fp16, bf16\. .* runs with backend=none; .* device='cpu'\."),
        ("onnx", "cpu", "bf16", r"bf16 runs with backend='openvino' or 'pt2' or 'eager'"),
        (
            "torchscript",
            "cpu",
            "bf16",
            r"where it runs fp32\. .* bf16 runs with backend='openvino' or 'pt2' or 'eager'\.",
        ),
    ],
)
def test_a_precision_that_a_device_cannot_run_is_told_with_what_can(
    backend: str, device: str, precision: str, says: str
) -> None:
    reason = unable(backend, device, precision)

    assert reason is not None
    assert re.search(says, reason), reason


def test_a_backend_that_was_named_and_cannot_run_it_has_no_substitute() -> None:
    chosen = choose(ALL, precision="fp16", backend="onnx")

    assert chosen.backend is None
    assert len(chosen.rejected) == 1


@pytest.mark.parametrize(
    ("artifacts", "backend", "can"),
    [
        ("hf://a/b", "auto", ["openvino", "onnx", "eager"]),
        ("hf://a/b", "onnx", ["onnx", "eager"]),
        ("hf://a/b", "torchscript", ["torchscript", "eager"]),
        ("hf://a/b", "pt2", ["pt2", "eager"]),
        ("folder", "auto", ["openvino", "onnx", "pt2", "torchscript", "eager"]),
    ],
)
def test_a_program_out_of_a_repository_serves_only_if_its_backend_is_named(
    artifacts: str, backend: str, can: list[str]
) -> None:
    request = request_for(NAME, weights="random", artifacts=artifacts, backend=backend)
    listed = [
        Artifact(request.key(Form(format)), (StoredFile("graph", 1, ""),), (), (), {"also_served_by": {"openvino": []}})
        for format in ("onnx", "pt2", "torchscript")
    ]
    asked = (request, Manifest(NAME, tuple(listed)), {}, lambda _: "cpu")
    found = {name: consider(asked[0], name, *asked[1:]) for name in candidates(request, asked[3])}

    assert sorted(name for name, candidate in found.items() if candidate.rejected is None) == sorted(can)
    for name in found.keys() - set(can):
        assert f"hf://a/b has it as {name}, a program of whoever pushed it" in str(found[name].rejected)


@pytest.mark.parametrize(("other", "told"), [({}, True), ({"out_indices": 1}, False), ({"weights": "random"}, False)])
def test_a_program_is_named_where_it_is_all_there_is_of_what_was_asked(other: dict[str, Any], told: bool) -> None:
    request = request_for(NAME, artifacts="hf://a/b")
    program = Artifact(request_for(NAME, **other).key(Form("torchscript")), (StoredFile("graph", 1, ""),), (), ())

    chosen = select(request, Manifest(NAME, (program,)), {}, lambda _: "cpu")

    assert chosen.backend == "eager"
    assert ("ask for backend='torchscript'" in str(chosen.rejected[0])) == told


def test_what_a_backend_did_not_verify_it_does_not_serve() -> None:
    request = request_for(NAME, weights="random", backend="openvino")
    artifact = Artifact(request.key(Form("onnx")), (StoredFile("graph", 1, ""),), (), ())

    chosen = select(request, Manifest(NAME, (artifact,)), {}, lambda _: "cpu")

    assert chosen.backend == "eager"
    assert re.search(r"was verified by onnx, not by openvino: .*--target=cpu .*--force", str(chosen.reasons), re.S)
