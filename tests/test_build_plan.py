"""What `python -m exporters.build` understands and plans: nothing here builds, but for one small artifact."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from builds import run_command
from conftest import request_for

from exporters import pipeline
from exporters.plan import Job
from exporters.staleness import versions
from runtime import list_models
from runtime.artifacts import MANIFEST
from runtime.manifest import RECIPE, ArtifactKey, Form


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("artifacts")
    pipeline.build(Job(request_for("test/own", artifacts=str(made)), (Form("onnx"),)))
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the backbones to build (a name or a glob), or pass --all"),
        (["test/own", "--all"], "name the backbones to build (a name or a glob), or pass --all"),
        (["test/owm"], "No backbone is registered as 'test/owm'. Nearest: test/own"),
        (["nobody/*"], "'nobody/*' matches no registered backbone"),
        (["test/own", "--exclude", "test/*"], "Nothing is left to build: --exclude test/* leaves out every name"),
        (["test/own", "--format", "onnx,pickle"], "'pickle' is none of onnx, pt2, torchscript"),
        (["test/own", "--target", "tpu"], "'tpu' is none of cpu, cuda"),
        (["test/own", "--precision", "fp32,fp8"], "'fp8' is none of fp32, fp16, bf16, int8"),
        (["test/own", "--input", "int8"], "'int8' is none of float32, uint8"),
        (
            ["test/own", "--format", "onnx", "--target", "cpu", "--precision", "fp16"],
            "No onnx for cpu, fp16 can be built. What exists is onnx for cpu: fp32, bf16, int8; onnx for cuda: fp32",
        ),
        (["test/own", "--input", "uint8"], "declares no mean and std"),
        (["test/own", "--out-indices", "1"], "takes no out_indices"),
        (["test/tiny_vit", "--out-indices", "4"], "the number of last feature maps is 1 to 3"),
        (["test/tiny_vit", "--out-indices", "-2,-4"], "-4 out of range. The backbone has 3 blocks"),
        (["test/tiny_vit", "--out-indices", "last"], "'last' is neither none, nor a number, nor numbers as in -2,-4"),
        (["test/tiny_vit", "--image-size", "33"], "both sides must be multiples of"),
        (["test/tiny_vit", "--image-size", "big"], "'big' is neither pixels, as in 224 or 224x448, nor dynamic"),
        (["test/own", "--option", "depth=3"], "unknown keyword: depth"),
        (["test/own", "--option", "depth"], "'depth' is not NAME=VALUE"),
        (["test/own", "--jobs", "0"], "'0' is not a number of at least 1"),
        (["test/own", "--timeout", "soon"], "'soon' is not a number of at least 1"),
        (["test/own", "--weights", "best"], "invalid choice: 'best'"),
        (["my/own", "--import", "no_such_module"], "No module named 'no_such_module'"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_says_why(arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = run_command(*arguments, "--artifacts", tmp_path / "new")

    assert ran.status == 2
    assert f"error: {message}" in ran.err or message in ran.err.rpartition("error: ")[2]
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["test/own"], [("test/own", None)]),
        (["test/tiny_vit"], [("test/tiny_vit", None), ("test/tiny_vit", [-1])]),  # of none, 1 and 4 those it has
        (["test/tiny_vit", "--out-indices", "-1,-3"], [("test/tiny_vit", [-3, -1])]),
        (["--out-indices", "-2", "test/tiny_vit"], [("test/tiny_vit", [-2])]),
        (
            ["test/tiny_vit", "--out-indices=2", "--out-indices", "none"],
            [("test/tiny_vit", w) for w in ([-2, -1], None)],
        ),
        (["test/tiny_vit", "--out-indices", "1", "--out-indices", "-1"], [("test/tiny_vit", [-1])]),
        (["test/o*", "test/own"], [("test/own", None)]),
        (
            ["test/tiny_*", "--exclude", "*tokens", "--exclude", "*_vit"],
            [("test/tiny_initial", w) for w in (None, [-1])],
        ),
    ],
)
def test_a_dry_run_plans_each_variant_once(arguments: list[str], expected: Any, tmp_path: Path) -> None:
    ran = run_command(*arguments, "--dry-run", "--json", "--format", "onnx", "--artifacts", tmp_path / "new")

    assert ran.status == 0
    planned = [(line["model"], line["key"]["out_indices"], line["key"]["target"]) for line in ran.lines]
    assert planned == [(*variant, target) for variant in expected for target in ("cpu", "cuda")]
    assert {(line["key"]["format"], line["action"], line["reason"]) for line in ran.lines} == {
        ("onnx", "build", "no artifact")
    }


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ran = run_command("test/own", "--dry-run", "--artifacts", tmp_path / "new")

    assert ran.status == 0
    assert [" ".join(line.split()) for line in ran.out.splitlines()] == [
        "MODEL VARIANT FORM ACTION REASON",
        "test/own embedding onnx for cpu, fp32 build no artifact",
        "test/own embedding onnx for cuda, fp32 build no artifact",
        "test/own embedding torchscript, fp32 build no artifact",
    ]
    assert list(tmp_path.iterdir()) == []


def test_all_covers_every_backbone_but_the_excluded(tmp_path: Path) -> None:
    ran = run_command(
        "--all", "--exclude", "test/*", "--exclude", "*dino", "--dry-run", "--json", "--artifacts", tmp_path
    )

    expected = {n for n in list_models() if not n.startswith("test/") and not n.endswith("dino")}
    assert ran.status == 0
    assert len(expected) > 15
    assert {line["model"] for line in ran.lines} == expected
    assert {(line["key"]["format"], line["key"]["target"]) for line in ran.lines} == {
        ("onnx", "cpu"),
        ("onnx", "cuda"),
        ("torchscript", "any"),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["onnx for cpu, fp32", "onnx for cuda, fp32", "torchscript, fp32"]),
        (["--target", "cuda", "--format", "torchscript,onnx"], ["onnx for cuda, fp32", "torchscript, fp32"]),
        (
            ["--format", "onnx", "--precision", "int8,fp16,fp32"],
            ["onnx for cpu, fp32", "onnx for cpu, int8", "onnx for cuda, fp32", "onnx for cuda, fp16"],
        ),
        (["--format", "pt2,torchscript", "--precision", "fp16"], ["pt2 for cuda, fp16"]),
        (
            ["--target", "cpu", "--input", "uint8,float32"],
            ["onnx for cpu, fp32", "onnx for cpu, fp32, uint8 input", "torchscript, fp32"],
        ),
    ],
)
def test_of_all_combinations_those_that_exist_are_planned(
    arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    ran = run_command("test/tiny_vit", "--out-indices=none", *arguments, "--dry-run", "--json", "--artifacts", tmp_path)

    assert ran.status == 0, ran.err
    assert [str(ArtifactKey.from_json(line["key"]).form) for line in ran.lines] == expected


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        for artifact in manifest["artifacts"]:
            change(artifact)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def _cut(folder: Path) -> None:
    next(folder.glob("*.onnx")).write_bytes(b"")


def _remove(folder: Path) -> None:
    next(folder.glob("*.onnx")).unlink()


@pytest.mark.parametrize(
    ("change", "action", "reason"),
    [
        (_edit(lambda a: None), "skip", "up to date"),
        (
            _edit(lambda a: a["versions"].update(torch="1.0")),
            "build",
            f"stale: torch 1.0 -> {versions('onnx', request_for('test/own').spec)['torch']}",
        ),
        (_edit(lambda a: a["versions"].pop("recipe")), "build", f"stale: recipe unknown -> {RECIPE}"),
        (_edit(lambda a: a["source"].update(id="hf://old")), "build", "stale: source hf://old -> None"),
        (_edit(lambda a: a["key"].update(weights="random:0")), "build", "no artifact"),
        (_cut, "build", "damaged: embedding.cpu.fp32.*.onnx has 0 bytes, the manifest says *"),
        (_remove, "build", "damaged: embedding.cpu.fp32.*.onnx is missing, though the manifest lists it"),
    ],
)
def test_what_is_stale_is_planned_with_its_reason(
    change: Callable[[Path], None], action: str, reason: str, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "test/own", tmp_path / "test/own")
    change(tmp_path / "test/own")
    options = ("test/own", "--format", "onnx", "--target", "cpu", "--artifacts", tmp_path, "--dry-run", "--json")

    [line], [forced] = run_command(*options).lines, run_command(*options, "--force").lines

    assert line["action"] == action
    assert fnmatchcase(line["reason"], reason)
    assert forced["action"] == "build"
    assert forced["reason"] == ("--force" if action == "skip" else line["reason"])


def test_the_packages_of_an_extra_decide_what_a_build_gives() -> None:
    plain = request_for("test/own").spec
    assert "monai" in versions("onnx", replace(plain, extra="radiology"))
    assert "monai" not in versions("onnx", plain)
