"""The list of backbones in the documentation is what the registry and the records say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import catalogue_report, support_matrix
from runtime import HubFile, list_models
from runtime.registry import find

NAME = "universal/vit_tiny_patch16_224_random"


def published() -> list[str]:
    return [name for name in list_models() if not name.startswith("test/")]


@pytest.fixture(autouse=True)
def without_the_tests_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_matrix, "list_models", published)


def record(
    variant: str, *, rms: float = 1e-6, shape: tuple[Any, ...] = ("batch", 192), status: str = "built", recipe: int = 7
) -> dict:
    output = {"shape": list(shape), "relative_rms": rms, "max_abs": 2 * rms}
    return {
        "model": NAME,
        "variant": variant,
        "seconds": 3.0,
        "versions": {"onnx": {"recipe": str(recipe)}},
        "parameters": 5_500_000,
        "image_size": [224, 224],
        "outcomes": [{"format": "onnx", "status": status, "note": "why", "peak_bytes": 2e9}],
        "outputs": {"onnx": [output]},
        "files": {"weights.a.data": 22_000_000, f"{variant}.onnx": 1000},
    }


def test_the_documents_are_not_stale() -> None:
    for path, text in support_matrix.rendered().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m benchmarks.support_matrix"


def test_every_registered_backbone_has_its_row() -> None:
    text = support_matrix.PAGE.read_text(encoding="utf-8")
    assert [name for name in published() if f"| `{name}` |" not in text] == []


def test_the_report_is_not_stale() -> None:
    written = (catalogue_report.REPORTS / "catalogue.md").read_text(encoding="utf-8")
    rows = [line for line in written.splitlines() if line.startswith("| ") and "/" in line.split("|")[1]]
    records = [r for r in catalogue_report.read_ledger() if r["model"] in published()]
    assert rows == [catalogue_report.row(r) for r in records]
    # The totals, too; only the machine's own line may differ.
    now = catalogue_report.render(records, published(), {"cpus": 0, "processor": "", "memory_gb": 0})
    totals, expected = ([line for line in t.splitlines() if line.startswith("- ")] for t in (written, now))
    assert totals == expected


def test_a_row_says_what_was_measured() -> None:
    records = [record("embedding"), record("4", rms=3e-6, shape=("batch", 192, 14, 14))]
    (row,) = support_matrix.matrix([find(NAME)], records)[2:]
    assert row == (
        f"| `{NAME}` | 5.5 M | 192 | 12 of 192x14x14 | onnx | 2.0e-06 (rel. 1.0e-06), 6.0e-06 (rel. 3.0e-06) | 22 MB | "
        "not stated | random weights |"
    )


def test_a_backbone_that_was_not_built_says_so() -> None:
    gated = replace(find(NAME), gated=True, licence="MIT", source=HubFile("me/mine"))
    (row,) = support_matrix.matrix([gated], [])[2:]
    assert (
        row
        == f"| `{NAME}` |  |  | 12 | not built | -, - |  | MIT (gated) | [me/mine](https://huggingface.co/me/mine) |"
    )


def test_the_report_counts_what_failed_and_names_what_is_missing() -> None:
    records = [record("embedding", rms=2e-6), record("1", status="failed")]
    text = catalogue_report.render(records, [NAME, "other/one"], {"cpus": 2, "processor": "P", "memory_gb": 25})
    for said in (
        "backbones built: 1 of 2; not built: other/one",
        "artifacts: 1 built, 1 failed",
        "worst relative RMS, images: 2e-06 (goal 1e-05)",
        "worst relative RMS, volumes: none built",
        "2.0 GB (goal 24 GB)",
        f"| {NAME} | 1 | onnx failed: why |",
    ):
        assert said in text


def test_the_report_names_the_forms_of_a_variant() -> None:
    made = record("embedding")
    known = {"status": "built", "precision": "fp32", "input": "float32"}
    made["outcomes"] = [
        {"format": "onnx", "target": "cpu", **known},
        {"format": "onnx", "target": "cuda", **known},
        {"format": "torchscript", "target": "any", **known},
    ]
    assert catalogue_report.row(made).split(" | ")[2] == "onnx for cpu fp32, onnx for cuda fp32, torchscript fp32"


def read(records: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    ledger = folder / "ledger.jsonl"
    ledger.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(catalogue_report, "LEDGER", ledger)
    return catalogue_report.read_ledger()


def test_the_latest_record_of_a_variant_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = read([record("1", rms=rms) for rms in (1e-3, 1e-6)], tmp_path, monkeypatch)

    assert catalogue_report.worst_rms(records, 2) == 1e-6


def test_records_of_a_models_older_recipes_are_not_mixed_with_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = record("1", recipe=2) | {"model": "other/one"}
    given = [record("1", recipe=9), record("4", recipe=10), record("embedding", recipe=10), other]

    records = read(given, tmp_path, monkeypatch)

    assert records == [other, record("4", recipe=10), record("embedding", recipe=10)]
