"""embed on a Ray cluster of two nodes, which lose workers, a node, a driver: one row per readable tile all the same."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_inputs import NAME, Pieces, embeddings_of, expected, image_folder, table_of, tiny
from ray_clusters import ENVIRONMENT, Nodes, answer, cluster, drive
from ray_inputs import watched

import runtime
from runtime.embedding import folder as folders
from runtime.embedding.command import main

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1200)]  # minutes, on a busy machine

COUNTS = {"a": 90, "b c": 30}
BAD = ("a/7", "b c/29")
MADE = Pieces(COUNTS, bad=frozenset(BAD))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of a CPU each."""
    with cluster((1, 1)) as made:
        yield made


def given(nodes: Nodes, built: Path, folder: Path, **source: Any) -> dict[str, Any]:
    return {
        "source": {"counts": COUNTS, "notes": str(folder / "notes"), "bad": BAD, "pause": 0.02} | source,
        "out": str(folder / "out"),
        "artifacts": str(built),
        "embed": {"address": nodes.address},
    }


def assert_every_tile_once(out: Path, built: Path) -> None:
    ids = table_of(out)["id"].to_pylist()
    assert sorted(ids) == sorted(MADE.ids)
    with tiny(built) as model:
        np.testing.assert_allclose(embeddings_of(out), expected(model, ids), rtol=1e-4, atol=1e-5)
    unreadable = [row["id"] for row in table_of(out / "_unreadable").to_pylist()]
    assert sorted(unreadable) == sorted(BAD)


def covered(out: Path) -> int:
    return sum(part.stop - part.start for part in folders.parts(out))


def command(nodes: Nodes, built: Path, tiles: Path, out: Path) -> list[str]:
    options = ["--import=tiny_backbones", "--weights=random", f"--artifacts={built}", "--on-fallback=error"]
    ray = ["--engine=ray", f"--address={nodes.address}", "--batch-size=8", "--part-tiles=16", "--json"]
    return [sys.executable, "-m", "runtime.embed", NAME, str(tiles), f"--out={out}", *options, *ray]


def test_the_command_gives_on_two_nodes_what_it_gives_on_one_machine(
    nodes: Nodes, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = image_folder(tmp_path / "tiles", 100, bad=[3])
    ours = command(nodes, built, tiles, tmp_path / "ray")
    ran = subprocess.run(ours, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    local = [part for part in ours[3:] if not part.startswith(("--engine", "--address"))]
    local[local.index(f"--out={tmp_path / 'ray'}")] = f"--out={tmp_path / 'local'}"

    assert main(local) == ran.returncode == 1, ran.stderr
    told, expected_ = json.loads(ran.stdout), json.loads(capsys.readouterr().out)
    same = ("rows", "unreadable", "tiles", "model", "backend", "device", "precision")
    assert {name: told[name] for name in same} == {name: expected_[name] for name in same}
    assert (told["rows"], told["unreadable"]) == (99, 1)
    assert "Traceback" not in ran.stderr
    names = [sorted(path.name for path in (tmp_path / which).iterdir()) for which in ("ray", "local")]
    assert names[0] == names[1]
    assert table_of(tmp_path / "ray")["id"].to_pylist() == table_of(tmp_path / "local")["id"].to_pylist()
    np.testing.assert_allclose(embeddings_of(tmp_path / "ray"), embeddings_of(tmp_path / "local"), rtol=1e-4, atol=1e-5)
    assert table_of(tmp_path / "ray" / "_unreadable").equals(table_of(tmp_path / "local" / "_unreadable"))


@pytest.mark.parametrize("coarse", [False, True], ids=["counts known", "only reading tells"])
def test_a_worker_that_is_killed_costs_no_row(nodes: Nodes, built: Path, tmp_path: Path, coarse: bool) -> None:
    # Where a piece is one range, the longer one must still go on when the driver hears that the shorter one is done.
    asked = given(nodes, built, tmp_path, coarse=coarse, pause=0.1 if coarse else 0.02)
    told = answer(drive(asked | {"strike": True}))

    assert len(told["workers"]) >= 3, "two actors, and the one that took the dead one's place"
    assert_every_tile_once(tmp_path / "out", built)
    assert told["summary"]["tiles"] == sum(COUNTS.values()) == told["progress"][-1][0]


def test_a_run_of_one_engine_is_gone_on_with_by_the_other(nodes: Nodes, built: Path, tmp_path: Path) -> None:
    asked = given(nodes, built, tmp_path)
    driver = drive(asked | {"embed": {"address": nodes.address, "resume": True}})
    _wait_for_parts(tmp_path / "out", 2, driver)
    driver.kill()  # its workers go on until Ray notices, and publish no more
    driver.communicate()
    begun = covered(tmp_path / "out")

    broken = watched(**(asked["source"] | {"damaged": "b c/20", "pause": 0}))
    with tiny(built) as model, pytest.raises(runtime.errors.InputError, match="b c/20 is damaged"):
        runtime.embed(model, broken, tmp_path / "out", resume=True, batch_size=8, part_tiles=16)
    gone_on = covered(tmp_path / "out")
    told = answer(drive(asked | {"embed": {"address": nodes.address, "resume": True}}))

    assert 2 * 16 <= begun < gone_on < sum(COUNTS.values())
    assert told["summary"]["tiles"] == sum(COUNTS.values()) - gone_on
    assert_every_tile_once(tmp_path / "out", built)
    assert answer(drive(asked | {"embed": {"address": nodes.address, "resume": True}}))["summary"]["tiles"] == 0


def test_an_interrupt_stops_the_run_with_status_130_and_it_can_be_gone_on_with(
    nodes: Nodes, built: Path, tmp_path: Path
) -> None:
    tiles = image_folder(tmp_path / "tiles", 2000)
    driver = subprocess.Popen(
        command(nodes, built, tiles, tmp_path / "out"),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    _wait_for_parts(tmp_path / "out", 2, driver)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=120)

    assert driver.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: what was published stays")
    assert not list((tmp_path / "out").glob(".run-*"))
    assert 2 * 16 <= table_of(tmp_path / "out").num_rows < 2000
    with tiny(built) as model:
        runtime.embed(model, tiles, tmp_path / "out", resume=True, batch_size=8)
    assert len(set(table_of(tmp_path / "out")["id"].to_pylist())) == table_of(tmp_path / "out").num_rows == 2000


def test_an_error_in_a_worker_is_raised_by_the_driver_once(nodes: Nodes, built: Path, tmp_path: Path) -> None:
    told = answer(drive(given(nodes, built, tmp_path, damaged="a/40")))

    assert told["error"] == "InputError"
    assert told["message"].startswith("On node ")
    assert told["message"].endswith(": a/40 is damaged.")


def test_a_tile_that_kills_every_worker_ends_the_run_and_is_named(nodes: Nodes, built: Path, tmp_path: Path) -> None:
    told = answer(drive(given(nodes, built, tmp_path, deadly="a/40", counts={"a": 64, "b c": 30})))

    assert told["error"] == "ClusterError"
    assert "4 workers died of tiles 32 to 48 of 'a'" in told["message"]
    assert "--resume" in told["message"]


def test_an_actor_that_no_node_has_room_for_is_refused(nodes: Nodes, built: Path, tmp_path: Path) -> None:
    asked = given(nodes, built, tmp_path)
    told = answer(drive(asked | {"embed": {"address": nodes.address, "cpus_per_actor": 2}}))

    assert told["error"] == "ClusterError"
    assert "1 actor of 2 CPUs asked for, and no node of the cluster has that" in told["message"]


def test_a_node_that_dies_costs_no_row(nodes: Nodes, built: Path, tmp_path: Path) -> None:
    driver = drive(given(nodes, built, tmp_path))
    assert driver.stdout is not None
    assert driver.stdout.readline() == "progress\n"
    nodes.kill(1)
    told = answer(driver)

    assert_every_tile_once(tmp_path / "out", built)
    assert told["summary"]["tiles"] == sum(COUNTS.values())


def _wait_for_parts(folder: Path, count: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while len(list(folder.glob("part-*"))) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
