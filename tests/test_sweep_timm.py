"""The sweep over timm: order, limits, results that can be taken up again, the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sweep_report, sweep_timm, sweep_worker
from runtime.backbones.timm_table import architectures
from runtime.manifest import RECIPE


def row(name: str, status: str = "built", reason: str = "", **facts: Any) -> dict[str, Any]:
    outputs = [{"name": "onnx embedding", "relative_rms": 2e-7}] if status == "built" else []
    known = {"family": architectures()[name].family, "seconds": 1.0, "outputs": outputs}
    return {"name": name, "status": status, "reason": reason, **known, **facts}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweep_timm, "RESULTS", tmp_path / "timm.jsonl")
    return tmp_path / "timm.jsonl"


def test_the_smallest_of_each_family_comes_first() -> None:
    options = sweep_timm._parser().parse_args(["resnet*", "vit_*", "--max-params", "100M"])
    names = sweep_timm.in_order(options)
    known = architectures()
    families = {known[name].family for name in names}

    assert {known[name].family for name in names[: len(families)]} == families
    assert names[0] != "resnet50" in names
    assert all(known[name].parameters <= 100_000_000 for name in names)
    few = sweep_timm._parser().parse_args(["--per-family", "1"])
    assert len(sweep_timm.in_order(few)) == len({a.family for a in known.values()}) == 98


def test_a_sweep_goes_on_where_it_stopped(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def run(name: str, timeout: float, memory: float) -> dict[str, Any]:
        tried.append(name)
        return row(name, "failed" if name == "resnet26" else "built")

    monkeypatch.setattr(sweep_worker, "run", run)
    results.write_text(json.dumps(row("resnet18")) + "\n")

    assert sweep_timm.main(["resnet18", "resnet26", "resnet34"]) == 1
    assert sweep_timm.main(["resnet18", "resnet26", "resnet34"]) == 1
    assert tried == ["resnet26", "resnet34"]
    sweep_timm.main(["resnet26", "resnet34", "--retry", "failed"])

    assert tried == ["resnet26", "resnet34", "resnet26"]
    assert list(sweep_timm.read(results)) == ["resnet18", "resnet26", "resnet34"]
    assert "resnet26" in results.with_suffix(".md").read_text()


def test_a_model_is_built_with_its_parity_written_down() -> None:
    told = sweep_worker.run("test_vit", timeout=300, memory=3)

    assert told["recipe"] == RECIPE
    assert (told["status"], told["reason"], told["family"]) == ("built", "", "vision_transformer")
    names = ["onnx embedding", "torchscript embedding", "onnx map_0", "onnx map_1"]
    assert [output["name"] for output in told["outputs"]] == names
    assert all(output["relative_rms"] < 1e-5 for output in told["outputs"])


def test_time_and_memory_are_limited() -> None:
    assert sweep_worker.run("test_vit", timeout=0, memory=3)["reason"] == "the time limit passed"
    told = sweep_worker.run("test_vit", timeout=300, memory=0.01)
    assert (told["status"], told["reason"]) == ("skipped", "it needs more than 0.01 GB of memory")
    told = sweep_worker.run("vit_giant_patch14_224", timeout=300, memory=3)
    assert (told["status"], told["seconds"]) == ("skipped", 0.0)


def test_the_report_tells_totals_and_the_cause_of_every_failure() -> None:
    rows = [row("resnet18", recipe=RECIPE), row("resnet26", "failed", "too | hot", recipe=RECIPE - 1)]
    rows += [row("vgg11", "skipped", "large")]

    text = sweep_report.markdown({r["name"]: r for r in rows})

    assert "| Families with a model built and verified | all 98 | 1 (1.0%): without " in text
    assert "| Names built, of those tried | 98% | 1 of 2 (50.0%) |" in text
    assert f"| Names tried with the present recipe of graphs, {RECIPE} | all of them | 1 of 2 |" in text
    assert "| resnet26 | too / hot |" in text
    assert "| vgg11 | large |" in text
    assert "| resnet | 1 | 2 | 0 | 2e-07 |" in text
