"""python -m exporters.triton: a repository that Triton's own schema, client and onnxruntime understand."""

import contextlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import triton_server
from builds import Ran
from conftest import request_for

from exporters import pipeline, triton
from exporters.plan import Job
from exporters.serving import config as configs
from exporters.serving import parts, repository
from exporters.serving.config import GraphFacts, Serving
from exporters.serving.names import name_of
from runtime import load_model
from runtime.artifacts import Store, sha256_of
from runtime.errors import DeviceError, OptionError
from runtime.manifest import Artifact, ArtifactKey, Form, StoredFile, TensorInfo

NAME = "test/tiny_vit"
# With the random weights of these tests, as Triton knows them.
EMBEDDING, MAPS = "test--tiny_vit--random", "test--tiny_vit--last2--random"


@pytest.fixture(scope="module")
def store(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `built` holds, and the embedding in the forms of GPUs and of pictures."""
    root = tmp_path_factory.mktemp("triton") / "store"
    shutil.copytree(built, root)
    forms = (Form("onnx", "cuda", "fp32"), Form("onnx", "cuda", "fp16", "uint8"), Form("onnx", "cpu", "fp32", "uint8"))
    outcomes = pipeline.build(Job(request_for(NAME, weights="random", artifacts=str(root)), forms))
    assert [o.status for o in outcomes] == ["built"] * 3, outcomes
    return root


def run(store: Path, folder: Path, *arguments: object, model: str = NAME, weights: str = "random") -> Ran:
    given = [model, "--repository", folder, "--artifacts", store, "--weights", weights, *arguments]
    return call(*given)


def call(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = triton.main([str(argument) for argument in arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def write(store: Path, folder: Path, *arguments: object, **options: str) -> Any:
    """Run the command, which must succeed; return the configuration it wrote."""
    ran = run(store, folder, *arguments, "--json", **options)
    assert ran.status == 0, ran.err
    return triton_server.read_config(folder / ran.lines[0]["name"])


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def eager(**options: Any) -> Any:
    return load_model(NAME, backend="eager", weights="random", device="cpu", **options)


def distance(got: Any, expected: Any) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize(
    ("arguments", "name", "given", "expected"),
    [
        (("--target", "cpu"), EMBEDDING, images(), lambda: [eager()(images())]),
        ((), EMBEDDING, images(), lambda: [eager()(images())]),
        (("--target", "cpu", "--out-indices", "2"), MAPS, images(), lambda: eager(out_indices=2)(images())),
        (
            ("--target", "cpu", "--input", "uint8"),
            "test--tiny_vit--uint8--random",
            pictures(),
            lambda: [eager()(eager().preprocess(pictures()))],
        ),
    ],
    ids=["cpu", "cuda", "maps", "uint8"],
)
def test_what_the_repository_holds_gives_the_eager_numbers(
    arguments: Any, name: str, given: Any, expected: Any, store: Path, tmp_path: Path
) -> None:
    assert run(store, tmp_path, *arguments).status == 0

    model = triton_server.load(tmp_path / name)

    got = model.session.run(None, {"images": given})
    assert [array.shape for array in got] == [array.shape for array in expected()]
    assert all(distance(a, b) < 1e-5 for a, b in zip(got, expected(), strict=True))


def test_a_file_of_weights_is_shared_by_the_models_of_a_repository_and_not_with_the_store(
    store: Path, tmp_path: Path
) -> None:
    first = run(store, tmp_path, "--target", "cpu", "--json").lines[0]["files"]
    second = run(store, tmp_path, "--target", "cpu", "--out-indices", "2", "--json").lines[0]["files"]

    assert [file["how"] for file in first] == ["copied", "copied"]
    assert [file["how"] for file in second] == ["copied", "linked"]
    assert second[1]["origin"] == first[1]["path"]
    assert (tmp_path / first[1]["path"]).samefile(tmp_path / second[1]["path"])
    assert all(path.stat().st_nlink == 1 for path in Store(store).folder(NAME).iterdir())
    triton_server.load(tmp_path / EMBEDDING)
    triton_server.load(tmp_path / MAPS)


def test_the_store_stays_readable_by_onnx_which_refuses_linked_files(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, "--target", "cpu")
    run(store, tmp_path, "--target", "cpu", "--out-indices", "2")

    with pytest.raises(Exception, match="multiple hard links"):
        onnx.load(triton_server.graph_of(tmp_path / MAPS, 1))
    for graph in Store(store).folder(NAME).glob("*.onnx"):
        onnx.load(graph)


def test_where_the_file_system_has_no_links_weights_are_copied(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    run(store, tmp_path, "--target", "cpu")

    files = run(store, tmp_path, "--target", "cpu", "--out-indices", "2", "--json").lines[0]["files"]

    assert [file["how"] for file in files] == ["copied", "copied"]
    triton_server.load(tmp_path / MAPS)


def test_damaged_weights_of_another_model_are_not_shared(store: Path, tmp_path: Path) -> None:
    files = run(store, tmp_path, "--target", "cpu", "--json").lines[0]["files"]
    damaged = tmp_path / files[1]["path"]
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)

    again = run(store, tmp_path, "--target", "cpu", "--out-indices", "2", "--json").lines[0]["files"]

    assert again[1]["how"] == "copied"
    assert sha256_of(tmp_path / again[1]["path"]) != sha256_of(damaged)


def test_a_damaged_artifact_is_not_published(store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "store")
    for weights in Store(copied).folder(NAME).glob("*.data"):
        weights.write_bytes(bytes(weights.stat().st_size))

    ran = run(copied, tmp_path / "models", "--target", "cpu")

    assert ran.status == 1
    assert "has another SHA-256 than the manifest says" in ran.err
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_second_run_keeps_what_is_there(store: Path, tmp_path: Path) -> None:
    first = write(store, tmp_path, "--target", "cpu", "--max-batch-size", "4")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.data")}

    ran = run(store, tmp_path, "--target", "cpu", "--max-batch-size", "16", "--json")

    assert [file["how"] for file in ran.lines[0]["files"]] == ["kept", "kept"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.data")} == before
    assert (first.max_batch_size, triton_server.read_config(tmp_path / EMBEDDING).max_batch_size) == (4, 16)
    assert sorted(path.name for path in (tmp_path / EMBEDDING).iterdir()) == ["1", "config.pbtxt"]


def test_what_became_of_the_configuration_is_told(store: Path, tmp_path: Path) -> None:
    given = [("--max-batch-size", 4), ("--max-batch-size", 4), ("--max-batch-size", 8)]
    told = [run(store, tmp_path, "--target", "cpu", *options, "--json").lines[0]["configuration"] for options in given]

    assert told == ["written", "kept", "rewritten"]
    assert f"{tmp_path}/{EMBEDDING}/config.pbtxt: rewritten" in run(store, tmp_path, "--target", "cpu").out


@pytest.mark.parametrize("change", ["\n# mine", "\nversion_policy: { all: {} }"])
def test_a_configuration_that_was_changed_by_hand_is_replaced_only_if_told(
    change: str, store: Path, tmp_path: Path
) -> None:
    run(store, tmp_path, "--target", "cpu")
    config = tmp_path / EMBEDDING / "config.pbtxt"
    edited = config.read_text() + change
    config.write_text(edited)

    refused = [run(store, tmp_path, "--target", "cpu", *more) for more in ([], ["--version", "2"])]

    assert [ran.status for ran in refused] == [1, 1]
    assert all(f"{config} was changed by hand since this command wrote it" in ran.err for ran in refused)
    assert config.read_text() == edited
    assert triton_server.versions(tmp_path / EMBEDDING) == [1]
    assert run(store, tmp_path, "--target", "cpu", "--overwrite", "--json").lines[0]["configuration"] == "rewritten"
    assert config.read_text() + change == edited


def test_a_rebuilt_artifact_takes_another_version_or_overwrites(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, "--target", "cpu")
    graph = triton_server.graph_of(tmp_path / EMBEDDING, 1)
    graph.write_bytes(b"an older build")

    refused = run(store, tmp_path, "--target", "cpu")
    assert refused.status == 1
    assert f"{tmp_path / EMBEDDING / '1'} holds another build of this model" in refused.err
    assert "Add --version 2" in refused.err
    assert graph.read_bytes() == b"an older build"

    files = run(store, tmp_path, "--target", "cpu", "--version", "2", "--json").lines[0]["files"]
    assert [file["how"] for file in files] == ["copied", "linked"]
    assert graph.read_bytes() == b"an older build"
    assert triton_server.load(tmp_path / EMBEDDING).version == 2

    assert run(store, tmp_path, "--target", "cpu", "--overwrite").status == 0
    assert sha256_of(graph) == sha256_of(triton_server.graph_of(tmp_path / EMBEDDING, 2))
    assert triton_server.versions(tmp_path / EMBEDDING) == [1, 2]


def test_another_models_folder_is_left_alone_unless_told(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, "--target", "cpu", "--name", "mine")
    run(store, tmp_path, "--target", "cpu", "--name", "mine", "--version", "2")
    before = (tmp_path / "mine" / "config.pbtxt").read_bytes()

    refused = run(store, tmp_path, "--target", "cpu", "--name", "mine", "--out-indices", "2")

    assert refused.status == 1
    assert "mine holds test/tiny_vit (embedding, onnx for cpu" in refused.err
    assert "not test/tiny_vit (2, onnx for cpu" in refused.err
    assert "--name, or replace everything in it with --overwrite" in refused.err
    assert (tmp_path / "mine" / "config.pbtxt").read_bytes() == before

    assert run(store, tmp_path, "--target", "cpu", "--name", "mine", "--out-indices", "2", "--overwrite").status == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["1", "config.pbtxt"]
    assert len(triton_server.load(tmp_path / "mine").config.output) == 2


@pytest.mark.parametrize("content", ['name: "theirs" backend: "python"', "not a configuration {", None])
def test_files_that_the_command_did_not_write_are_left_alone(content: str | None, store: Path, tmp_path: Path) -> None:
    theirs = tmp_path / EMBEDDING / ("config.pbtxt" if content else "notes.txt")
    theirs.parent.mkdir()
    theirs.write_text(content or "precious")

    ran = run(store, tmp_path, "--target", "cpu")

    assert ran.status == 1
    assert f"{theirs.parent} holds files that this command did not write" in ran.err
    assert [path.name for path in theirs.parent.iterdir()] == [theirs.name]
    assert theirs.read_text() == (content or "precious")


def test_what_a_killed_run_left_is_cleared(store: Path, tmp_path: Path) -> None:
    (tmp_path / EMBEDDING / ".staging" / "new").mkdir(parents=True)

    assert run(store, tmp_path, "--target", "cpu").status == 0

    assert sorted(path.name for path in (tmp_path / EMBEDDING).iterdir()) == ["1", "config.pbtxt"]


def test_a_first_run_that_ended_before_the_configuration_is_gone_on_with(store: Path, tmp_path: Path) -> None:
    assert run(store, tmp_path, "--target", "cpu").status == 0
    (tmp_path / EMBEDDING / "config.pbtxt").unlink()

    again = run(store, tmp_path, "--target", "cpu")

    assert again.status == 0, again.err
    assert sorted(path.name for path in (tmp_path / EMBEDDING).iterdir()) == ["1", "config.pbtxt"]


def test_a_repository_that_cannot_be_written_is_named(store: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")

    ran = run(store, tmp_path / "models", "--target", "cpu")

    assert ran.status == 1
    assert f"{tmp_path / 'models' / EMBEDDING} cannot be written: File exists" in ran.err
    assert "name another folder with --repository" in ran.err


def test_a_full_disk_leaves_the_version_that_is_served(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, tmp_path, "--target", "cpu")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.shutil, "copyfile", full)
    ran = run(store, tmp_path, "--target", "cpu", "--version", "2")

    assert ran.status == 1
    assert "No space left on device" in ran.err
    assert triton_server.load(tmp_path / EMBEDDING).version == 1
    assert sorted(path.name for path in (tmp_path / EMBEDDING).iterdir()) == ["1", "config.pbtxt"]


def test_the_configuration_of_a_cpu_asks_for_no_accelerator(store: Path, tmp_path: Path) -> None:
    config = write(store, tmp_path, "--target", "cpu", "--instances", "2", "--queue-delay-us", "500")

    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_CPU, 2, [])
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert not config.HasField("optimization")
    assert not config.model_warmup


def test_the_configuration_of_gpus_names_them_and_computes_as_load_model_does(store: Path, tmp_path: Path) -> None:
    arguments = ("--gpus", "0,2", "--instances", "3", "--preferred-batch-size", "16,8", "--max-batch-size", "64")
    config = write(store, tmp_path, "--precision", "fp16", "--input", "uint8", *arguments)

    [group] = config.instance_group
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 3, [0, 2])
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 64]
    assert list(config.model_warmup[0].inputs["images"].dims) == list(config.input[0].dims) == [32, 32, 3]
    assert config.name == "test--tiny_vit--fp16--uint8--random"


def test_without_gpus_named_instances_run_on_every_gpu(store: Path, tmp_path: Path) -> None:
    [group] = write(store, tmp_path).instance_group

    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [])


def test_dynamic_batching_is_asked_for_even_without_any_delay(store: Path, tmp_path: Path) -> None:
    assert write(store, tmp_path, "--target", "cpu").HasField("dynamic_batching")


def test_tensorrt_keeps_engines_by_artifact_and_is_told_only_what_triton_knows(store: Path, tmp_path: Path) -> None:
    config = write(store, tmp_path, "--precision", "fp16", "--input", "uint8", "--tensorrt", "/engines")

    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    given = dict(tensorrt.parameters)
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    assert set(given) <= triton_server.TENSORRT
    digest = parameters(config)["backbone.graph_sha256"]
    assert given["trt_engine_cache_path"] == f"/engines/{config.name}-{digest[:12]}"
    assert (given["precision_mode"], given["trt_engine_cache_enable"]) == ("FP16", "1")


def test_a_graph_that_tensorrt_takes_in_pieces_has_no_profiles_and_a_warning(store: Path, tmp_path: Path) -> None:
    ran = run(store, tmp_path, "--tensorrt")

    config = triton_server.read_config(tmp_path / EMBEDDING)
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert not [name for name in accelerator.parameters if "profile" in name]
    assert "TensorRT cannot take BiasGelu, MultiHeadAttention, SkipLayerNormalization" in ran.err


ARTIFACT = Artifact(
    key=ArtifactKey(None, "onnx", "cuda", "fp32", (32, 48), (), "pretrained"),
    files=(StoredFile("graph.onnx", 1, "ab" * 32),),
    inputs=(TensorInfo("images", ("batch", 3, 32, 48)),),
    outputs=(TensorInfo("embedding", ("batch", 48)),),
)
WHOLE, PIECES = GraphFacts("ONNX IR 10"), GraphFacts("ONNX IR 10", ("MultiHeadAttention",))
DYNAMIC = replace(ARTIFACT, inputs=(TensorInfo("images", ("batch", 3, "8*h", "8*w")),))


@pytest.mark.parametrize(
    ("artifact", "graph", "preferred", "profiles"),
    [
        (ARTIFACT, WHOLE, (), {"min": "1x3x32x48", "opt": "64x3x32x48", "max": "64x3x32x48"}),
        (ARTIFACT, WHOLE, (8, 16), {"min": "1x3x32x48", "opt": "16x3x32x48", "max": "64x3x32x48"}),
        (ARTIFACT, PIECES, (8,), {}),
        (DYNAMIC, WHOLE, (8,), {}),
    ],
    ids=["whole", "preferred", "pieces", "dynamic"],
)
def test_profiles_are_given_to_a_graph_that_tensorrt_takes_whole(
    artifact: Artifact, graph: GraphFacts, preferred: Any, profiles: dict[str, str]
) -> None:
    serving = Serving(max_batch_size=64, preferred_batch_sizes=preferred, engine_cache="/engines")

    given = configs.tensorrt_parameters("model", artifact, serving, graph)

    found = {name: value for name, value in given.items() if "profile" in name}
    assert found == {f"trt_profile_{which}_shapes": f"images:{shape}" for which, shape in profiles.items()}


def test_dimensions_that_vary_are_minus_one_and_warmed_up_at_the_declared_size() -> None:
    request = request_for(NAME, weights="random", image_size="dynamic", backend="onnx")

    config = configs.config_of("model", request, DYNAMIC, Serving(), WHOLE)

    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["images"].dims) == [3, 32, 32]


def test_a_client_is_told_what_the_model_is_and_how_pictures_become_its_input(store: Path, tmp_path: Path) -> None:
    told = parameters(write(store, tmp_path, "--target", "cpu"))

    assert told["backbone.model"] == NAME
    assert told["backbone.weights"] == "random:0"
    assert told["backbone.licence"] == "Apache-2.0"
    assert told["backbone.source"] == "http://127.0.0.1:9/tiny.pth"
    assert told["backbone.needs"] == "ONNX IR 10, opset 18, com.microsoft 1"
    assert json.loads(told["backbone.key"])["image_size"] == [32, 32]
    facts = json.loads(told["backbone.preprocessing"])
    assert (facts["size"], facts["mean"], facts["interpolation"]) == (32, [0.5, 0.5, 0.5], "bicubic")


def test_random_weights_are_served_only_to_those_who_ask_and_loudly(store: Path, tmp_path: Path) -> None:
    pretrained = run(store, tmp_path, "--target", "cpu", weights="pretrained")
    random = run(store, tmp_path, "--target", "cpu")

    assert pretrained.status == 1
    assert "No onnx artifact of 'test/tiny_vit' for embedding, onnx for cpu, fp32, 32x32, pretrained" in pretrained.err
    assert "warning: the weights are random (random:0)" in random.err
    assert random.status == 0


@pytest.mark.parametrize(("weights", "told"), [("random:0", True), ("initial:3", True), ("pretrained", False)])
def test_weights_that_nobody_trained_warn(weights: str, told: bool) -> None:
    artifact = replace(ARTIFACT, key=replace(ARTIFACT.key, weights=weights))

    warnings = triton.warnings_of(artifact, Serving(), WHOLE)

    assert [f"the weights are random ({weights})" in warning for warning in warnings] == [True] * told


def test_a_model_that_is_not_built_is_told_with_the_command_that_builds_it(store: Path, tmp_path: Path) -> None:
    ran = run(store, tmp_path, "--out-indices=-3", "--precision", "fp16")

    assert ran.status == 1
    assert "No onnx artifact of 'test/tiny_vit' for -3, onnx for cuda, fp16" in ran.err
    build = "python -m exporters.build test/tiny_vit --format=onnx --target=cuda --precision=fp16 --out-indices=-3"
    assert build in ran.err
    assert not tmp_path.joinpath("test--tiny_vit--blocks-3--fp16--random").exists()


def test_artifacts_in_other_formats_are_told_to_be_of_no_use(store: Path, tmp_path: Path) -> None:
    only = shutil.copytree(store, tmp_path / "store")
    manifest = Store(only).read(NAME)
    kept = replace(manifest, artifacts=tuple(a for a in manifest.artifacts if a.key.format == "torchscript"))
    (Store(only).folder(NAME) / "manifest.json").write_text(kept.to_text())

    ran = run(only, tmp_path / "models")

    assert ran.status == 1
    assert "Built: none." in ran.err
    assert "reads ONNX only. Of no use to it, though built: torchscript, fp32." in ran.err


def test_a_graph_made_for_another_device_is_served_with_a_warning(built: Path, tmp_path: Path) -> None:
    ran = run(built, tmp_path)  # holds graphs for CPUs alone

    assert ran.status == 0
    assert "this graph was made for cpu: on cuda it gives the same numbers, but slower" in ran.err
    assert "exporters.build NAME --target cuda" in ran.err


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("cpu", "fp16", "on KIND_CPU instances it runs fp32, int8. --target cuda runs fp16."),
        ("cpu", "bf16", "on KIND_CPU instances it runs fp32, int8. --target cuda runs bf16."),
        ("cuda", "int8", "on KIND_GPU instances it runs fp32, fp16, bf16. --target cpu runs int8."),
    ],
)
def test_a_precision_that_the_instances_cannot_run_is_refused(target: str, precision: str, words: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Serving(target=target).check_precision(precision)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "cpu", "gpus": (0,)}, "--gpus is for instances on GPUs"),
        ({"target": "cpu", "engine_cache": "/engines"}, "--tensorrt is for instances on GPUs"),
        ({"max_batch_size": 8, "preferred_batch_sizes": (4, 16)}, "--preferred-batch-size=16 is more than"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Serving(**options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--name", "a/b"), "--name='a/b' cannot be the name of a model in Triton"),
        (("--name", ".hidden"), "cannot be the name"),
        (("--name", "x" * 201), "cannot be the name"),
        (("--target", "cpu", "--precision", "fp16"), "Triton's onnxruntime backend cannot run that"),
        (("--max-batch-size", "0"), "'0' is not a number of at least 1"),
        (("--gpus", "0,x"), "'x' is not a number of at least 0"),
        (("--out-indices", "9"), "the number of last feature maps is 1 to 3"),
        (("--version", "0"), "'0' is not a number of at least 1"),
        (("--import", "no_such_module"), "No module named 'no_such_module'"),
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: tuple[str, ...], words: str, store: Path, tmp_path: Path) -> None:
    ran = run(store, tmp_path, *arguments)

    assert ran.status == 2
    assert words in ran.err
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_told_with_its_neighbours(store: Path, tmp_path: Path) -> None:
    ran = run(store, tmp_path, model="test/tiny_vot")

    assert ran.status == 2
    assert "Nearest: test/tiny_vit" in ran.err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "test--tiny_vit"),
        ({"out_indices": 2}, "test--tiny_vit--last2"),
        ({"out_indices": (-3, -1)}, "test--tiny_vit--blocks-3_-1"),
        ({"precision": "fp16", "input": "uint8"}, "test--tiny_vit--fp16--uint8"),
        ({"image_size": (32, 48)}, "test--tiny_vit--32x48"),
        ({"image_size": 32}, "test--tiny_vit"),
        ({"image_size": "dynamic"}, "test--tiny_vit--dynamic"),
        ({"weights": "random"}, "test--tiny_vit--random"),
    ],
)
def test_names_say_what_differs_from_the_default(options: dict[str, Any], name: str) -> None:
    assert name_of(request_for(NAME, **options)) == name


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda package: package != "tritonclient")

    ran = call(NAME, "--repository", "models")

    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "error: exporters.triton needs tritonclient: pip install 'backbone-runtime[triton]'\n"


def test_the_help_has_examples_and_the_exit_statuses() -> None:
    ran = call("--help")

    assert ran.status == 0
    assert "python -m exporters.triton pathology/kaiko_vits16" in ran.out
    assert "exit status: 0" in ran.out


def test_an_interrupted_run_is_exit_status_130(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "place", interrupt)
    ran = run(store, tmp_path, "--target", "cpu")

    assert ran.status == 130
    assert "run the same command to go on" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_report_names_every_file_and_how_to_start_the_server(store: Path, tmp_path: Path) -> None:
    out = run(store, tmp_path, "--target", "cpu").out

    assert f"is model '{EMBEDDING}', version 1." in out
    assert f"{tmp_path}/{EMBEDDING}/1/model.onnx/model.onnx: 0.0 MB, copied" in out
    assert out.splitlines()[-1] == f"Start it with: tritonserver --model-repository={tmp_path}"
