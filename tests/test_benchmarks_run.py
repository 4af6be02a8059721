"""One real run of the benchmark, small: files, numbers, and reasons for what cannot run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from benchmark_reports import row_of

from benchmarks import cold_start, measurement, peers, render, run, ways
from benchmarks.contender import Contender, ContenderError, Runner, runners
from benchmarks.fidelity import fidelity
from benchmarks.lineup import CAPTURED, CPU, CUDA, EAGER, LINEUPS, Entry, contender, labels
from benchmarks.measurement import groups, megabytes
from benchmarks.needs import flags
from benchmarks.pictures import batch, seconds_per_tile
from benchmarks.turns import in_turns
from benchmarks.work import flops_of_products, work_of
from runtime import registry
from runtime.facts import HALF, Preprocessing
from runtime.manifest import Form
from runtime.request import make_request

NAME = "timm/test_vit.r160_in1k"
RANDOM = {"weights": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run leaves behind: two contenders that run, products, and one that has nothing to be served from."""
    out = tmp_path_factory.mktemp("reports")
    chosen = [
        f"--contenders={label}"
        for label in ("torch.onnx.export, plain", "products onnx fp32", "pt2 fp32", "eager bf16")
    ]
    limits = ["--batches=1,3", "--rounds=3", "--cold-starts=1", "--no-build", "--device=cpu"]
    assert run.main([NAME, *chosen, *limits, f"--out={out}", f"--artifacts={out / 'store'}"]) == 0
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "benchmark.json").read_text())
    return read


def test_a_run_writes_json_markdown_and_plots(folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {
        "benchmark.json",
        "benchmark.md",
        *(f"benchmark-{plot}.png" for plot in ("throughput", "fidelity", "roofline")),
    }
    text = (folder / "benchmark.md").read_text()
    assert f"## {NAME} on cpu" in text
    assert "![benchmark-roofline.png](benchmark-roofline.png)" in text
    assert "| torch.onnx.export, plain | " in text


def test_every_timing_is_kept_with_eagers_of_the_same_round(report: dict[str, Any]) -> None:
    (section,) = report["sections"]
    for label in (EAGER, "torch.onnx.export, plain", "eager bf16"):
        row = row_of(section, label)
        assert set(row["timings"]) == {"1", "3"}
        for timings in row["timings"].values():
            assert len(timings["seconds"]) == len(timings["eager"]) == 3
            assert min(timings["seconds"]) > 0
        assert row["cold"][0]["seconds"] > row["about"]["load_seconds"] > 0
        assert row["peak_mb"] > 10
    assert row_of(section, EAGER)["timings"]["3"]["seconds"] == row_of(section, "eager bf16")["timings"]["3"]["eager"]


def test_fidelity_tells_precisions_apart(report: dict[str, Any]) -> None:
    (section,) = report["sections"]
    exact, half = (row_of(section, label)["fidelity"]["float64"] for label in (EAGER, "eager bf16"))
    assert 1e-9 < exact["relative_rms"] < 1e-5
    assert 1e-3 < half["relative_rms"] < 1e-1
    assert row_of(section, EAGER)["fidelity"]["eager"]["relative_rms"] == 0


def test_what_cannot_run_is_listed_with_the_reason(report: dict[str, Any], folder: Path) -> None:
    row = row_of(report["sections"][0], "pt2 fp32")
    assert "timings" not in row
    assert "No pt2 artifact" in row["reason"]
    assert "optimum O3" in report["sections"][0]["not_chosen"]
    assert "- Not run: pt2 fp32: No pt2 artifact" in (folder / "benchmark.md").read_text()


def test_machine_command_and_versions_are_recorded(report: dict[str, Any]) -> None:
    assert report["command"].startswith(f"python -m benchmarks.run {NAME} ")
    assert report["machine"]["cpus"] >= 1
    assert {"torch", "numpy"} <= set(report["machine"]["versions"])
    assert set(report["sections"][0]["tile_seconds"]) == {"decode", "preprocess"}


def test_a_report_can_be_rendered_where_matplotlib_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "installed", lambda _: False)
    said = render.render(folder / "benchmark.json")
    assert said[-1].startswith("No plots: matplotlib is not installed.")
    assert "benchmark-roofline.png" not in (folder / "benchmark.md").read_text()
    monkeypatch.undo()
    assert render.main([str(folder / "benchmark.json")]) == 0
    assert "benchmark-roofline.png" in (folder / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such"], "no/such"),
        (["--contenders=tensorflow*"], "matches none of eager fp32"),
        (["--batches=0,8"], "no batch sizes"),
        (["--batches=many"], "no batch sizes"),
        (["--optimum=/no/such/python"], "--optimum: /no/such/python cannot be started: No such file or directory"),
        (["--optimum=false"], "--optimum: false has no optimum-onnx. Install there: optimum-onnx"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(arguments)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_volumes_are_refused_with_the_reason() -> None:
    failed: dict[str, str] = {}
    assert run._subject("test/volumes", "random", "nowhere", failed) is None
    assert failed == {"test/volumes": "it takes volumes; pictures are measured"}


def test_a_contender_that_cannot_be_loaded_says_why() -> None:
    with pytest.raises(ContenderError, match="no_such_library is not installed"):
        Runner(Contender("none", NAME, RANDOM, way="eager_cast", libraries=("no_such_library",)))
    with pytest.raises(ContenderError, match="No backbone is registered as 'no/such'"):
        cold_start.start(Contender("none", "no/such", {"backend": "eager", **RANDOM}), (3, 160, 160))


def test_a_contender_that_fails_takes_no_further_part_and_the_others_go_on() -> None:
    here = Contender("here", NAME, {"backend": "eager", **RANDOM})
    lost: dict[str, str] = {}
    images = batch(Preprocessing(size=160), (160, 160), 2)["float32"]
    with runners([here, Contender("wrong", NAME, {"backend": "eager", **RANDOM})]) as made:
        given = {"here": images, "wrong": images[:, :2]}
        seconds = in_turns(made, given, 2, warmup=0, lost=lambda label, error: lost.update({label: str(error)}))
        assert set(seconds) == {"here"}
        assert len(seconds["here"]) == 2
        assert "channels" in lost["wrong"]
        with pytest.raises(ContenderError, match="channels"):
            in_turns(made, given, 1)


def test_products_of_every_precision_are_multiplied() -> None:
    products = [[5, 16, 32], [5, 32, 16]]
    images = np.zeros((3, 3, 8, 8), np.float32)
    for way, precision in (("torch", "fp32"), ("torch", "bf16"), ("torch", "int8"), ("onnx", "fp32"), ("onnx", "int8")):
        options = {"device": "cpu", "precision": precision, "products": products}
        with runners([Contender("p", NAME, options, way=f"products_{way}")]) as made:
            assert made["p"].time(images) > 0, (way, precision)
    assert flops_of_products(products, 3) == 2 * 3 * (5 * 16 * 32 + 5 * 32 * 16)


def test_work_is_counted_once_and_products_are_the_linear_layers() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, stride=2), torch.nn.Flatten(2), torch.nn.Linear(16, 8))
    told = work_of(module, (3, 8, 8))
    assert told["parameters"] == 3 * 4 * 4 + 4 + 16 * 8 + 8
    assert told["flops"] == 2 * (16 * 4 * 12 + 4 * 16 * 8)
    assert told["products"] == [[4, 16, 8]]


def test_contenders_that_do_not_fit_into_memory_together_are_grouped_with_eager_in_each() -> None:
    made = [Contender(label, NAME, {}) for label in (EAGER, "a", "b", "c")]
    taken = {EAGER: 100.0, "a": 100.0, "b": 100.0, "c": 500.0}
    assert [[c.label for c in g] for g in groups(made, taken, 300)] == [[EAGER, "a", "b"], [EAGER, "c"]]
    assert groups(made[1:], taken, 300) == []


def test_groups_share_the_time_by_the_number_of_their_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shares = [0.0], []
    monkeypatch.setattr(measurement.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(measurement, "groups", lambda *_: [["contender"] * 6, ["contender"] * 3, ["contender"]])
    subject: Any = SimpleNamespace(model=NAME, weights="random", size=(8, 8), work={"parameters": 1})

    def run_to_the_end(_: Any, group: list[Any], until: float) -> None:
        shares.append(until - now[0])
        now[0] = until

    monkeypatch.setattr(measurement._Section, "run", run_to_the_end)

    measurement.measure(subject, "cpu", [], measurement.Plan((1,), 1, 0, deadline=100.0))

    assert shares == pytest.approx([60, 30, 10])


def test_a_contender_without_a_cold_start_takes_memory_for_its_weights() -> None:
    rows = [{"label": "cold", "cold": [{"peak_mb": 123.0}]}, {"label": "warm"}, {"label": "products", "cold": []}]

    assert megabytes(rows, 300_000_000) == {"cold": 123.0, "warm": 3100.0, "products": 3100.0}


def test_fidelity_is_of_the_worst_image_and_knows_nan() -> None:
    reference = np.array([[3.0, 4.0], [1.0, 0.0]])
    told = fidelity([reference], [np.array([[3.0, 4.0], [1.0, 0.5]])])
    assert told["relative_rms"] == pytest.approx(0.5)
    assert told["min_cosine"] == pytest.approx(1 / np.sqrt(1.25))
    assert fidelity([reference], [np.array([[3.0, 4.0], [1.0, np.nan]])])["relative_rms"] is None
    with pytest.raises(ValueError, match="shapes"):
        fidelity([reference], [reference[:1]])


def test_tiles_are_the_same_as_uint8_and_as_model_input() -> None:
    facts = Preprocessing(size=48, resize=64, mean=HALF, std=HALF)
    made = batch(facts, (48, 48), 3)
    assert made["uint8"].shape == (3, 48, 48, 3)
    np.testing.assert_allclose(made["float32"], made["uint8"].transpose(0, 3, 1, 2) / 255 * 2 - 1, atol=1e-6)
    assert not (made["uint8"][0] == made["uint8"][1]).all()
    assert all(len(seconds) == 5 for seconds in seconds_per_tile(facts, (48, 48), 5).values())


def test_the_line_up_names_each_contender_once_and_asks_for_forms_that_exist() -> None:
    from exporters.plan import PRECISIONS

    for entries in LINEUPS.values():
        assert len({entry.label for entry in entries}) == len(entries)
        for entry in entries:
            if entry.form:
                assert entry.form.precision in PRECISIONS[entry.form.format, entry.form.target], entry.label
                assert entry.precision == entry.form.precision, entry.label
    assert CPU[0].label == CUDA[0].label == EAGER
    assert set(labels()) == {entry.label for entry in (*CPU, *CUDA)}


def test_a_peers_graph_is_exported_by_the_interpreter_that_has_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho reason: it is another one\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(peers.PeerError, match=r"^it is another one$"):
        peers.export("optimum", NAME, "random", (3, 160, 160), tmp_path, python=str(python))
    assert (tmp_path / "asked").read_text().startswith('-m benchmarks.peers ["optimum", ')


def test_a_peer_that_cannot_export_says_why_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise peers.PeerError("it needs blocks")

    monkeypatch.setitem(peers.EXPORTS, "optimum", refuse)
    with pytest.raises(SystemExit) as left:
        peers.main("optimum", NAME, "random", [3, 160, 160], str(tmp_path / "model.onnx"))
    assert left.value.code == "reason: it needs blocks"


def test_usual_batch_sizes_that_a_small_machine_leaves_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cpu_count", lambda: 2)
    assert list(run._left_out("cpu", (1, 8, 32))) == ["64"]
    assert run._left_out("cpu", (1, 64)) == run._left_out("cuda", (1,)) == {}


def test_forms_of_one_contract_are_built_by_one_command() -> None:
    forms = [Form("onnx", "cpu"), Form("onnx", "cpu", "int8"), Form("torchscript")]
    assert flags(forms) == ["--format=onnx,torchscript", "--target=cpu", "--precision=fp32,int8", "--input=float32"]


@pytest.mark.parametrize("entry", [e for es in LINEUPS.values() for e in es if e.way == "runtime"], ids=str)
def test_every_row_of_this_project_asks_for_what_load_model_takes(entry: Entry) -> None:
    given = {"weights": "random", "artifacts": "none", "device": "cpu", "batch_sizes": [1, 4, 64]}

    asked = make_request(registry.find(NAME), None, contender(entry, NAME, given).options)

    assert asked.cuda_graphs is entry.label.endswith(CAPTURED)
    assert asked.batch_sizes == ((1, 4, 64) if asked.cuda_graphs else None)


def test_a_peers_graph_bound_to_memory_gives_what_it_gives_unbound(tmp_path: Path) -> None:
    graph = peers.export("dynamo", NAME, "random", (3, 160, 160), tmp_path)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((3, 3, 160, 160), dtype=np.float32)

    outputs = ways._fetched(ways._run_bound(session, torch.from_numpy(images)))

    for got, expected in zip(outputs, session.run(None, {session.get_inputs()[0].name: images}), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_on_gpus_torch_convolves_in_full_precision_as_onnx_graphs_do() -> None:

    seen = [ways._on_torch(lambda _: torch.backends.cudnn.allow_tf32, device).call(None) for device in ("cpu", "cuda")]

    assert seen == [True, False]
    assert torch.backends.cudnn.allow_tf32, "torch's default"
