"""`python -m runtime list` and `info`: what is registered and built, and what load_model would do, without torch."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import BLOCK, ROOT, Environment, work_folder
from stores import NAME, graph_of, published
from terminal import run

from runtime import list_models, load, load_model, ranking
from runtime.artifacts import MANIFEST, Store
from runtime.errors import BackboneError, DeviceError
from runtime.terminal import entry, info, listing


@pytest.fixture(autouse=True)
def openvino_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the committed report says: which backend comes first changes with every measurement."""
    fp32 = [{"backend": backend, "times_eager": speed} for backend, speed in (("openvino", 2.5), ("onnx", 2.0))]
    measured = {"source": "a report", "ranking": {"cpu": {"fp32": fp32}}}
    monkeypatch.setattr(ranking, "measurements", lambda: measured)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


def test_every_registered_name_is_listed_with_its_facts(tmp_path: Path) -> None:
    ran = run(listing.main, "--artifacts", tmp_path, "--json")

    assert ran.status == 0
    assert [line["model"] for line in ran.lines] == list_models()
    told = {line["model"]: line for line in ran.lines}
    uni = told["pathology/mahmood_uni"]
    assert (uni["gated"], uni["depth"], uni["patch_size"], uni["built"]) == (True, 24, 16, [])
    assert uni["source"].startswith("hf://")
    assert uni["preprocessing"]["size"] == 224
    assert told["test/tiny_tokens"]["options"] == {"include_patch_tokens": False}


def test_names_come_first_in_columns(built: Path) -> None:
    ran = run(listing.main, "test/tiny_*", "pathology/mahmood_uni", "--artifacts", built)

    header, *rows = ran.out.splitlines()
    assert header.split() == ["MODEL", "PIXELS", "BLOCKS", "LICENCE", "GATED", "BUILT"]
    assert [row.split()[0] for row in rows] == sorted([*list_models("test/tiny_*"), "pathology/mahmood_uni"])
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    assert cells[NAME][:4] == ["32x32", "3", "Apache-2.0", "4"]
    assert "gated" in cells["pathology/mahmood_uni"]


def test_what_is_built_is_listed_with_its_parity(store: Store) -> None:
    ran = run(listing.main, "--built", "--artifacts", store.root, "--json")
    shown = run(listing.main, "--built", "--artifacts", store.root)

    [line] = ran.lines
    assert line["model"] == NAME
    artifacts = store.read(NAME).artifacts
    assert [built["graph"] for built in line["built"]] == [artifact.graph.name for artifact in artifacts]
    for built, artifact in zip(line["built"], artifacts, strict=True):
        outputs = artifact.facts["parity"]["outputs"]
        assert built["parity"]["relative_rms"] == max(output["relative_rms"] for output in outputs)
        assert built["parity"]["min_cosine"] == min(output["min_cosine"] for output in outputs)
        assert built["graph_bytes"] + built["weight_bytes"] == sum(file.bytes for file in artifact.files)
    assert len(shown.out.splitlines()) == 1 + len(artifacts)
    assert "onnx for cpu, fp32  32x32   random:0" in shown.out


def test_what_is_built_and_not_registered_is_listed_all_the_same(store: Store) -> None:
    folder = store.root / "nobody/knows"
    shutil.copytree(store.folder(NAME), folder)
    manifest = json.loads((folder / MANIFEST).read_text()) | {"model": "nobody/knows"}
    (folder / MANIFEST).write_text(json.dumps(manifest))

    [line] = run(listing.main, "nobody/*", "--artifacts", store.root, "--json").lines
    shown = run(listing.main, "nobody/*", "--artifacts", store.root)

    assert (line["registered"], len(line["built"])) == (False, 4)
    assert "not registered here" in shown.out


def test_a_manifest_that_cannot_be_used_is_told_and_the_rest_is_listed(store: Store) -> None:
    broken = store.root / "test/own"
    broken.mkdir()
    (broken / MANIFEST).write_text("{}")

    ran = run(listing.main, "--built", "--artifacts", store.root, "--json")

    assert ran.status == 1
    assert [line["model"] for line in ran.lines] == ["test/own", NAME]
    assert "test/own/manifest.json is not a valid manifest" in ran.err


def test_names_are_listed_where_the_artifacts_are_in_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE_ARTIFACTS", "hf://our-lab/backbones")

    ran = run(listing.main, "pathology/kaiko*")
    built = run(listing.main, "--built")

    header, *rows = ran.out.splitlines()
    assert (ran.status, [row.split()[0] for row in rows]) == (0, list_models("pathology/kaiko*"))
    assert all(len(row) <= header.index("BUILT") for row in rows)
    assert ran.err == (
        "BUILT is not told of hf://our-lab/backbones, a repository of the hub: see python -m runtime info MODEL.\n"
    )
    assert (built.status, built.out) == (2, "")


def test_an_empty_store_is_no_error(tmp_path: Path) -> None:
    ran = run(listing.main, "--built", "--artifacts", tmp_path / "none")

    assert (ran.status, ran.out) == (0, "")
    assert "python -m exporters.build NAME" in ran.err


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (listing.main, ["no/*"], "'no/*' matches no registered backbone, nor one built in"),
        (info.main, ["test/tiny_vti"], "Nearest: test/tiny_vit"),
        (info.main, [NAME, "--out-indices", "4"], "the number of last feature maps is 1 to 3"),
        (info.main, [NAME, "--image-size", "33"], "multiples of"),
        (info.main, [NAME, "--option", "depth=3"], "unknown keyword: depth"),
        (info.main, [NAME, "--backend", "tpu"], "invalid choice: 'tpu'"),
        (info.main, [NAME, "--device", "tpu"], "device='tpu' is not a device"),
        (entry.main, ["explain"], "invalid choice: 'explain'"),
        (entry.main, [], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage_says_why(main: Any, arguments: list[str], says: str, built: Path) -> None:
    ran = run(main, *arguments, *([] if main is entry.main else ["--artifacts", built]))

    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err


def told(root: Path, *arguments: str) -> dict[str, Any]:
    [line] = run(info.main, NAME, "--artifacts", root, "--json", *arguments).lines
    return dict(line)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--weights", "random"], {"weights": "random"}),
        (["--weights", "random", "--out-indices", "-2,-1"], {"weights": "random", "out_indices": (-2, -1)}),
        (["--weights", "random", "--out-indices", "1"], {"weights": "random", "out_indices": 1}),
        (["--weights", "random", "--backend", "onnx"], {"weights": "random", "backend": "onnx"}),
        (["--weights", "random", "--backend", "torchscript"], {"weights": "random", "backend": "torchscript"}),
        (
            ["--weights", "random", "--backend", "onnx", "--precision", "fp16", "--device", "cpu"],
            {"weights": "random", "backend": "onnx", "precision": "fp16", "device": "cpu"},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::runtime.errors.BackendFallbackWarning")
def test_what_it_says_would_serve_is_what_serves(arguments: list[str], options: dict[str, Any], built: Path) -> None:
    said = told(built, *arguments)

    try:
        with load_model(NAME, artifacts=built, **options) as model:
            served: str | None = model.backend
    except BackboneError as error:
        served = None if type(error).__name__ != "WeightsError" else "eager"  # of a server that is not there

    assert said["serves"] == served
    assert (said["load"] is None) == (served is None)
    assert (said["refused"] is None) == (served is not None)


@pytest.mark.parametrize("backend", ["auto", "onnx", "torchscript", "eager"])
def test_cuda_without_a_driver_is_rejected_by_every_backend_as_load_model_does(
    backend: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "nvidia_driver", lambda: False)
    reason = "device='cuda': no NVIDIA driver is present (libcuda cannot be loaded). Or use device='cpu'."

    said = told(built, "--weights", "random", "--device", "cuda", "--backend", backend)

    of_cuda = [chance for chance in said["candidates"] if chance["backend"] != "openvino"]  # which is for CPUs
    assert (said["serves"], said["load"]) == (None, None)
    assert {(chance["verdict"], chance["reason"]) for chance in of_cuda} == {("rejected", reason)}
    with pytest.raises(DeviceError) as caught:
        load_model(NAME, artifacts=built, weights="random", device="cuda", backend=backend)
    assert str(caught.value).splitlines().count(reason) == 1


def test_the_reasons_are_those_of_load_model(built: Path) -> None:
    said = told(built, "--weights", "random", "--out-indices", "1")

    chances = {chance["backend"]: chance for chance in said["candidates"]}
    assert list(chances) == ["openvino", "onnx", "pt2", "torchscript", "eager"]
    assert chances["eager"]["verdict"] == "serves"
    assert (
        f"No onnx artifact of {NAME!r} for 1, onnx for cpu, fp32, 32x32, random:0 weights" in chances["onnx"]["reason"]
    )
    assert "python -m exporters.build" in chances["torchscript"]["reason"]


def test_what_comes_later_could_serve_too(built: Path) -> None:
    said = told(built, "--weights", "random")

    assert {chance["backend"]: chance["verdict"] for chance in said["candidates"]} == {
        "openvino": "serves",
        "onnx": "could serve, comes later",
        "pt2": "rejected",
        "torchscript": "could serve, comes later",
        "eager": "could serve, comes later",
    }
    assert said["embedding"] == 48


def test_the_call_it_prints_loads_that(built: Path) -> None:
    said = told(built, "--weights", "random", "--backend", "onnx", "--device", "cpu")

    import runtime

    model = eval(said["load"], {"runtime": runtime})
    assert (model.backend, model.device) == ("onnx", "cpu")


def test_a_fallback_that_is_ruled_out_is_told(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE_ON_FALLBACK", "error")

    said = told(built, "--weights", "random", "--out-indices", "1")

    assert (said["serves"], said["load"]) == (None, None)
    assert said["refused"] == "eager torch could, and is ruled out by on_fallback='error'"


def test_facts_artifacts_and_reasons_are_shown(store: Store) -> None:
    graph = graph_of(store, "onnx")
    graph.write_bytes(b"")

    ran = run(info.main, NAME, "--artifacts", store.root, "--weights", "random", "--out-indices", "-2,-1")

    assert ran.status == 0
    for words in (
        "  images     3 channels, 32 x 32 pixels, bicubic",
        "  mean, std  0.5, 0.5, 0.5; 0.5, 0.5, 0.5",
        "  blocks     3, patch 8",
        "  embedding  48",
        "  licence    Apache-2.0",
        "  source     http://127.0.0.1:9/tiny.pth",
        f"Built in {store.root}: 4 artifacts, ",
        f"    {published(store, 'torchscript').graph.name}, served by torchscript",
        f"    damaged: {graph.name} has 0 bytes, the manifest says ",
        "Asked for fp32, float32 input, backend='auto', device=None:",
        "Load it with: runtime.load_model('test/tiny_vit', backend='openvino', out_indices=(-2, -1), weights='random'",
    ):
        assert words in ran.out, words


def test_listing_and_explaining_need_no_torch(built: Path, tmp_path: Path) -> None:
    here = Environment(Path(sys.executable), work_folder(tmp_path))
    code = BLOCK + "\nimport runpy\nsys.argv[0] = 'runtime'\nrunpy.run_module('runtime', run_name='__main__')"
    common = ("--artifacts", str(built), "--import", "plugin", "--json")

    listed = here.run("-c", code, "list", "--built", *common, PYTHONPATH=str(ROOT))
    explained = here.run("-c", code, "info", NAME, "--weights", "random", *common, PYTHONPATH=str(ROOT))

    assert listed.returncode == 0, listed.stderr
    assert [json.loads(line)["model"] for line in listed.stdout.splitlines()] == [NAME]
    assert explained.returncode == 0, explained.stderr
    said = json.loads(explained.stdout)
    assert said["serves"] in ("onnx", "openvino")
    assert "torch is not installed" in said["candidates"][-1]["reason"]
