"""benchmarks.passes: each pass is left out once, and only what it changes is measured."""

from pathlib import Path

import pytest

from benchmarks import passes


def test_only_passes_that_change_the_graph_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "REPORT", tmp_path / "passes.md")

    passes.main(["test_vit", "test_convnext", "--batches", "1", "2", "--rounds", "2"])

    _, vit, convnext = passes.REPORT.read_text().split("\n## ")
    tables = [[row.split(" | ") for row in text.splitlines()[4:] if row] for text in (vit, convnext)]
    measured = [[row[0].removeprefix("| ") for row in table if row[1] == "1"] for table in tables]
    fused = ["without fuse_attention", "without pack_attention", "with fuse_skip_normalisation"]
    assert {*measured[0]} >= {passes.SERVED, *fused, "without fuse_gelu", passes.EXPORTED}
    assert "without fuse_silu" not in measured[0]
    assert {*measured[1]} >= {passes.SERVED, "without drop_copies"}
    assert not {*measured[1]} & {*fused}
    for table in tables:
        assert [row[1] for row in table] == ["1"] * (len(table) // 2) + ["2"] * (len(table) // 2)
        assert [row[4:] for row in table if row[0] == f"| {passes.SERVED}"] == [["1.000", "1.000 |"]] * 2
