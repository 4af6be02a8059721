"""The gate between two reports, what a report says, and the order of backends: tables of decisions."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_reports import report, row, section, written

from benchmarks import compare, results
from benchmarks.costs import Limits
from benchmarks.lineup import INSTANTLY
from benchmarks.ranking import ranking
from benchmarks.run_markdown import markdown, torch_wins


def verdicts(before: Any, after: Any, limit: float = 0.05) -> dict[str, str]:
    found = compare.compare(report(section(before)), report(section(after)), Limits(speed=limit))
    return {f.what.partition(": ")[2]: f.verdict for f in found}


NOISY = {b: {"seconds": [0.6, 0.7, 0.4, 0.9, 0.45], "eager": [1.0] * 5} for b in "18"}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (row("onnx fp32", 2.0), row("onnx fp32", 1.98), "same"),
        (row("onnx fp32", 2.0), row("onnx fp32", 1.8), "slower"),
        (row("onnx fp32", 2.0), row("onnx fp32", 2.4), "faster"),
        (row("onnx fp32", 2.0), row("onnx fp32", timings=NOISY, ratio=1.8), "within noise"),
        (row("onnx fp32", 2.0), row("onnx fp32"), "gone"),
        (row("onnx fp32"), row("onnx fp32", 2.0), "new"),
    ],
)
def test_a_contender_is_judged_by_its_ratio_to_eager(before: Any, after: Any, verdict: str) -> None:
    assert verdicts(before, after) == {f"onnx fp32, batch {batch}": verdict for batch in (1, 8)}


def test_the_limit_is_the_callers() -> None:
    before, after = row("onnx fp32", 2.0), row("onnx fp32", 1.8)
    assert set(verdicts(before, after, limit=0.15).values()) == {"same"}


def test_what_has_become_less_exact_is_a_regression_however_fast() -> None:
    found = verdicts(row("onnx fp32", 2.0, error=3e-7), row("onnx fp32", 4.0, error=3e-3))
    assert found["onnx fp32"] == "less exact"
    lost = row("onnx fp32", 2.0)
    lost["fidelity"]["float64"] = {"relative_rms": None, "min_cosine": None}
    assert verdicts(row("onnx fp32", 2.0), lost)["onnx fp32"] == "less exact"
    lucky = verdicts(row("onnx fp32", 2.0, error=1e-8), row("onnx fp32", 2.0, error=2e-7))
    assert "onnx fp32" not in lucky


def costing(
    load: float = 0.1, cold: tuple[float, ...] = (0.3, 0.4), first: float = 160, peak: float | None = 280
) -> dict[str, Any]:
    """Return a row of a contender as fast as it is exact, with what its start and its memory cost."""
    starts = [{"seconds": seconds, "peak_mb": first + number} for number, seconds in enumerate(cold)]
    return row("onnx fp32", 2.0, about={"load_seconds": load}, cold=starts, peak_mb=peak)


COSTS = ("slower load", "slower start", "more memory", "not compared")


def costs(before: Any, after: Any, limits: Limits | None = None, **machine: Any) -> list[tuple[str, str]]:
    reports = report(section(before)), report(section(after), **machine)
    found = compare.compare(*reports, limits or Limits())
    return [(f.verdict, f.detail) for f in found if f.verdict in (*COSTS, "within noise")]


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (costing(), []),
        (costing(load=0.02, cold=(0.1,), first=90, peak=90), []),
        (costing(load=0.34), []),
        (costing(load=0.36), [("slower load", "loading took 0.1 -> 0.36 s: +260%")]),
        (costing(cold=(0.9, 0.9)), [("slower start", "the cold start took 0.35 -> 0.9 s: +157%")]),
        (costing(cold=(0.7, 0.9)), [("within noise", "the cold start took 0.35 -> 0.8 s: +129%")]),
        (costing(first=205), []),
        (costing(first=215), [("more memory", "the first image took 160.5 -> 215.5 MB: +34%")]),
        (costing(peak=334), []),
        (costing(peak=340), [("more memory", "all batches took 280 -> 340 MB: +21%")]),
        (costing(peak=None), [("not compared", "only one report has what all batches took")]),
    ],
)
def test_load_cold_start_and_memory_are_judged(after: Any, found: list[tuple[str, str]]) -> None:
    assert costs(costing(), after) == found


def test_the_limits_of_start_and_memory_are_the_callers() -> None:
    after = costing(load=0.9, cold=(0.9, 0.9), first=240, peak=350)

    assert [verdict for verdict, _ in costs(costing(), after)] == [
        "slower load", "slower start", "more memory", "more memory"
    ]  # fmt: skip
    assert costs(costing(), after, Limits(start=9, memory=1)) == []
    assert [verdict for verdict, _ in costs(costing(), after, Limits(start=9))] == ["more memory", "more memory"]
    assert len(costs(costing(load=4), costing(load=5), Limits(start=0.2))) == 1


def test_seconds_and_memory_of_two_machines_are_not_compared() -> None:
    after = costing(load=9, first=999)

    assert len(costs(costing(), after, versions={"torch": "2.11.0"})) == 2
    assert costs(costing(), after, processor="Q") == []


def test_the_memory_of_other_batch_sizes_says_nothing() -> None:
    after = costing(peak=999)
    after["timings"]["32"] = after["timings"]["8"]

    assert costs(costing(), after) == []


def test_a_contender_that_starts_slowly_fails_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (
        written(tmp_path, name, report(section(costing(load=load)))) for name, load in (("a", 0.1), ("b", 0.9))
    )

    assert compare.main([before, after]) == 1
    assert "1 of 3 regressed; the limit is 5%, of load and start 100%, of memory 20%" in capsys.readouterr().out
    assert compare.main([before, after, "--max-start=900%", "--max-memory", "0.5"]) == 0
    assert "the limit is 5%, of load and start 900%, of memory 50%" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([before, after, "--max-start=often"])
    assert "'often' is no share by which something may grow" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "status"), [(2.0, 0), (1.5, 1)])
def test_the_exit_status_is_the_gate(
    ratio: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path, "before", report(section(row("onnx fp32", 2.0))))
    after = written(tmp_path, "after", report(section(row("onnx fp32", ratio))))
    assert compare.main([before, after, "--max-regress", "5%"]) == status
    assert f"{2 * status} of 2 regressed; the limit is 5%" in capsys.readouterr().out


def test_other_machines_are_named_and_refused_until_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path, "before", report(section(row("onnx fp32", 2.0))))
    other = report(section(row("onnx fp32", 2.0)), processor="Q", versions={"torch": "2.11.0"})
    after = written(tmp_path, "after", other)
    with pytest.raises(SystemExit) as left:
        compare.main([before, after])
    assert left.value.code == 2
    told = capsys.readouterr()
    assert "processor: P -> Q" in told.out
    assert "torch: 2.15.0 -> 2.11.0" in told.out
    assert "--across" in told.err
    assert compare.main([before, after, "--across"]) == 0
    told = capsys.readouterr()
    assert "processor: P -> Q" in told.out
    assert "Load, cold start and memory are not compared: the machine is another." in told.out


def test_wrong_files_are_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path, "good", report(section(row("onnx fp32", 2.0))))
    texts = {
        "prose.json": ("no JSON", "# Benchmark"),
        "other.json": ("has no sections", json.dumps({"figures": []})),
        "old.json": ("has schema 0", json.dumps({"schema": 0, "sections": [], "command": "again"})),
        "elsewhere.json": ("share no backbone", json.dumps(report(section(model="c/d")))),
        "larger.json": ("image_size is [32, 32] in one", json.dumps(report(section(image_size=[64, 64])))),
        "empty.json": ("share no backbone", json.dumps(report())),
    }
    for name, (said, text) in {**texts, "missing.json": ("cannot be read", "")}.items():
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit) as left:
            compare.main([good, str(tmp_path / name)])
        assert left.value.code == 2
        assert said in capsys.readouterr().err, name
    for share in ("fast", "-1%", "120%"):
        with pytest.raises(SystemExit):
            compare.main([good, good, f"--max-regress={share}"])
        assert "no share below 1" in capsys.readouterr().err


def test_the_report_says_where_torch_wins() -> None:
    ours = row("onnx fp32", 2.0)
    slow, fast = (row("torch.compile fp32", ratio, side="torch") for ratio in (1.5, 3.0))
    assert torch_wins([section(ours, slow)]) == []
    told = torch_wins([section(ours, fast)])
    assert told[0] == "- a/b on cpu, batch 1, fp32: torch.compile fp32 is 1.50 times as fast as onnx fp32."
    assert len(told) == 4
    close = torch_wins([section(ours, row("torch.compile fp32", 2.005, side="torch"))])
    assert all(line.endswith("within the spread.") for line in close)
    assert "Nowhere in this run." in markdown(report(section(ours, slow)), [])


def test_a_better_precision_of_torch_is_told_where_no_precision_of_ours_reaches_it() -> None:
    half = row("eager bf16", 3.0, side="torch", precision="bf16")
    told = torch_wins([section(row("onnx fp32", 2.0), half)])
    assert [line.partition(":")[0].split(", ")[-1] for line in told] == ["any precision", "any precision"]


def test_torch_wins_in_a_precision_that_a_lower_one_of_ours_outruns() -> None:
    theirs = row("eager bf16", 3.0, side="torch", precision="bf16")
    ours = row("openvino bf16", 2.0, precision="bf16"), row("openvino int8", 6.0, precision="int8")
    told = torch_wins([section(theirs, *ours)])
    assert [line.partition(":")[0].split(", ")[-1] for line in told] == ["bf16", "bf16"]


def test_a_batch_size_that_only_the_last_contenders_had_time_for_is_not_shown() -> None:
    rows = [row("onnx fp32", 2.0), row("pt2 fp32", 1.1), row("openvino fp32", 2.5), row("optimum O3", 1.7)]
    made = section(*rows)
    for late in (made["contenders"][0], rows[-1]):
        late["timings"]["32"] = {"seconds": [1.0] * 3, "eager": [2.0] * 3}
    assert results.batches(made) == [1, 8]
    for late in rows:
        late["timings"]["32"] = {"seconds": [1.0] * 3, "eager": [2.0] * 3}
    assert results.batches(made) == [1, 8, 32]


def test_reports_of_two_states_of_the_code_are_compared_without_being_told_to(tmp_path: Path) -> None:
    states = [report(section(row("onnx fp32", 2.0)), code=f"recipe 4, commit {commit}") for commit in ("abc", "def")]
    before, after = (written(tmp_path, str(number), made) for number, made in enumerate(states))
    assert compare.main([before, after]) == 0


def test_a_report_says_which_contenders_nobody_asked_for() -> None:
    text = markdown(report(section(row("onnx fp32", 2.0), not_chosen=["eager bf16", "optimum O3"])), [])
    assert "- Not asked for: eager bf16, optimum O3." in text


def test_the_share_of_the_products_rate_is_computed_from_the_same_batch() -> None:
    product = {"side": "product", "timings": {"8": {"seconds": [1.6e-3] * 3, "eager": [8.0] * 3}}}
    made = section(row("onnx fp32", 2.0), row("products onnx fp32", 1.0, **product))
    assert results.peaks(made, 8) == {"fp32": (pytest.approx(1.0), "onnx")}
    assert results.gflops(made, made["contenders"][1], 8) == pytest.approx(2.0)
    assert results.peaks(made, 1) == {}


def test_backends_are_ranked_by_device_and_precision_on_the_backbones_they_share() -> None:
    vino, half = row("openvino fp32", 2.5), row("openvino bf16", 4.0, precision="bf16")
    one = section(row("onnx fp32", 2.0), vino, half, row("torch.compile fp32", 9.0, side="torch"))
    other = section(row("onnx fp32", 3.0), vino, model="c/d")
    third = section(row("onnx fp32", 30.0), model="e/f")

    ranked = ranking(report(one, other, third))

    assert [(e["backend"], e["backbones"]) for e in ranked["cpu"]["fp32"]] == [
        ("openvino", 2),
        ("onnx", 2),
        ("eager", 2),
    ]
    assert ranked["cpu"]["fp32"][1]["times_eager"] == pytest.approx(6**0.5, rel=1e-3)
    assert ranked["cpu"]["fp32"][0]["images_per_second"] == pytest.approx(2.5, rel=1e-3)
    assert [e["backend"] for e in ranked["cpu"]["bf16"]] == ["openvino"]


def test_what_is_not_finite_or_given_other_images_is_not_ranked() -> None:
    broken = row("onnx fp32", 5.0)
    broken["fidelity"]["float64"] = {"relative_rms": None, "min_cosine": None}
    ranked = ranking(
        report(
            section(
                broken, row("openvino fp32", 6.0, images="uint8"), row(f"onnx fp32{INSTANTLY}", 7.0), row("pt2 fp32")
            )
        )
    )
    assert [e["backend"] for e in ranked["cpu"]["fp32"]] == ["eager"]
