"""`python -m benchmarks.embedding`, on a tiny model and for a moment: it measures both sides and writes its report."""

import json
from pathlib import Path

import pytest
from embedding_inputs import NAME

from benchmarks import build_cost, embedding, figures


def test_it_measures_both_sides_in_turns_and_writes_a_report(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_cost, "run_build", lambda *_: None)  # it is built
    monkeypatch.setattr(figures, "REPORTS", tmp_path)
    asked = ["--models", NAME, "--artifacts", str(built), "--rounds", "2", "--seconds", "0.05", "--workers", "1"]

    status = embedding.main([*asked, "--name", "small"])

    (figure,) = json.loads((tmp_path / "small.json").read_text())["figures"]
    assert status == (0 if figure["reached"] else 1)
    seconds = figure["data"]["seconds"]
    assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys(seconds, 2)
    assert all(one > 0 for name in ("bare", "embed") for one in seconds[name])
    assert figure["data"]["tiles"] >= 64
    ratio = float(figure["measured"].partition("%")[0]) / 100
    low, high = sorted(bare / embed for bare, embed in zip(seconds["bare"], seconds["embed"], strict=True))
    assert low - 0.001 <= ratio <= high + 0.001
    assert (tmp_path / "small.md").read_text().count(NAME) >= 1
    assert NAME in capsys.readouterr().out
