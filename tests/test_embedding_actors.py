"""How many actors a cluster gets, and what is refused before Ray is asked for anything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import request_for
from embedding_inputs import NAME, Pieces, tiny

import runtime
from runtime.embedding import connection
from runtime.embedding.actors import Actors, Node, decide, placed, wants_gpu
from runtime.embedding.command import main
from runtime.errors import ClusterError, DependencyError, OptionError, UnknownModelError
from runtime.sharing import cached

MADE = Pieces({"a": 4})
HEAD = Node("10.0.0.1", 0)
TWO, FOUR, TWELVE, MANY = (Node(f"10.0.1.{n}", n) for n in (2, 4, 12, 64))
GPUS = Node("10.0.2.1", 96, 8)
ONE_GPU = Node("10.0.2.2", 6, 1)


@pytest.mark.parametrize(
    ("nodes", "options", "asked", "actors"),
    [
        ([TWO], {}, {}, Actors(1, 2)),
        ([HEAD, TWELVE], {}, {}, Actors(2, 6)),
        ([MANY, MANY], {}, {}, Actors(16, 8)),
        ([FOUR, MANY], {}, {}, Actors(17, 4)),
        ([Node("10.0.0.3", 1), Node("10.0.0.4", 1)], {}, {}, Actors(2, 1)),
        ([MANY], {}, {"number": 3}, Actors(3, 8)),
        ([TWELVE], {}, {"cpus": 5}, Actors(2, 5)),
        ([TWELVE, GPUS], {}, {}, Actors(8, 12, 1)),
        ([ONE_GPU, GPUS], {}, {}, Actors(9, 6, 1)),
        ([GPUS], {}, {"number": 2, "cpus": 1}, Actors(2, 1, 1)),
        ([TWELVE, GPUS], {"device": "cpu"}, {}, Actors(18, 6)),
        ([GPUS], {"backend": "openvino"}, {}, Actors(12, 8)),
        ([GPUS], {"precision": "int8"}, {}, Actors(12, 8)),
        ([GPUS], {"device": "cuda"}, {}, Actors(8, 12, 1)),
        ([GPUS], {"providers": ["CPUExecutionProvider"]}, {}, Actors(12, 8)),
        ([GPUS], {"providers": ["TensorrtExecutionProvider"]}, {}, Actors(8, 12, 1)),
    ],
)
def test_the_actors_fill_the_cluster(
    nodes: list[Node], options: dict[str, Any], asked: dict[str, int], actors: Actors
) -> None:
    assert decide(nodes, request_for(NAME, **options), **asked) == actors


@pytest.mark.parametrize(
    ("nodes", "options", "asked", "message"),
    [
        ([HEAD], {}, {}, "1 actor of 1 CPU asked for, and no node of the cluster has that. Nodes: 10.0.0.1 (0 CPUs"),
        ([TWO, TWO], {}, {"cpus": 3}, "1 actor of 3 CPUs asked for, and no node of the cluster has that"),
        ([TWO, TWO], {}, {"number": 3}, "3 actors of 2 CPUs each asked for, and the cluster has room for 2"),
        ([TWO], {"device": "cuda"}, {}, "1 actor of 1 CPU and a GPU asked for, and no node of the cluster has that"),
        ([TWO], {"device": "cuda"}, {}, "use --device cpu"),
        ([GPUS], {}, {"cpus": 97}, "1 actor of 97 CPUs and a GPU asked for, and no node"),
        ([], {}, {}, "Nodes: none"),
    ],
)
def test_what_would_wait_forever_is_refused(
    nodes: list[Node], options: dict[str, Any], asked: dict[str, int], message: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        decide(nodes, request_for(NAME, **options), **asked)

    assert message in str(refused.value)


@pytest.mark.parametrize(("number", "cpus"), [(0, None), (None, 0), ("2", None), (True, None)])
def test_numbers_below_one_are_refused(number: Any, cpus: Any) -> None:
    with pytest.raises(OptionError, match="must be an int of at least 1"):
        decide([TWO], request_for(NAME), number, cpus)


def test_one_gpu_of_several_cannot_be_named() -> None:
    with pytest.raises(OptionError, match="'cuda:1': Ray gives each actor a GPU of its own"):
        wants_gpu(request_for(NAME, device="cuda:1"), True)


def test_an_actor_loads_the_model_on_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = request_for(NAME, artifacts="built", checkpoint_path="weights.pth")

    on_cpu, on_gpu = placed(asked, Actors(3, 6)), placed(asked, Actors(3, 6, 1))

    assert (on_cpu.device, on_gpu.device, on_cpu.threads) == ("cpu", "cuda", 6)
    assert (on_cpu.artifacts, on_cpu.checkpoint_path) == (str(tmp_path / "built"), str(tmp_path / "weights.pth"))
    assert placed(request_for(NAME, threads=2), Actors(3, 6)).threads == 2


@pytest.mark.parametrize("named_by", ["keyword", "environment"])
def test_every_actor_loads_from_the_same_commit_of_a_repository(named_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = f"hf://org/repo@{'a' * 40}"
    monkeypatch.setattr(cached, "pin", lambda request: replace(request, artifacts=commit))
    if named_by == "environment":
        monkeypatch.setenv("BACKBONE_ARTIFACTS", "hf://org/repo@v1")
    asked = request_for(NAME, artifacts="hf://org/repo@v1" if named_by == "keyword" else None)

    assert placed(asked, Actors(3, 6)).artifacts == commit


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "spark"}, "engine='spark' is none of 'local', 'ray'"),
        ({"address": "127.0.0.1:6379"}, "address: only with engine='ray'"),
        ({"actors": 2, "cpus_per_actor": 1}, "actors, cpus_per_actor: only with engine='ray'"),
        ({"engine": "ray", "out": None}, "engine='ray' writes to a folder that all its workers share: name one"),
        ({"engine": "ray", "address": "ray://head:10001"}, "is not HOST:PORT of a Ray cluster's head"),
        ({"engine": "ray", "address": "head"}, "is not HOST:PORT of a Ray cluster's head"),
        ({"engine": "ray", "reuse_outputs": True}, "reuse_outputs"),
        ({"engine": "ray", "no_such": 1}, "unknown keyword: no_such"),
    ],
)
def test_what_does_not_go_with_the_engine_is_refused(keywords: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as refused:
        runtime.embed(NAME, MADE, **({"out": tmp_path} | keywords))

    assert message in str(refused.value)


def test_a_loaded_backbone_cannot_be_sent_to_a_cluster(built: Path, tmp_path: Path) -> None:
    with tiny(built) as model, pytest.raises(OptionError, match="give its name, 'test/tiny_vit', and the keywords"):
        runtime.embed(model, MADE, tmp_path, engine="ray")


def test_an_unknown_model_is_refused_before_a_cluster_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        runtime.embed("test/tiny_vitt", MADE, tmp_path, engine="ray", address="127.0.0.1:9")


def test_where_no_cluster_answers_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as refused:
        runtime.embed(NAME, MADE, tmp_path / "out", engine="ray", address="127.0.0.1:9")

    assert "No Ray cluster answers at 127.0.0.1:9: [Errno 111] Connection refused" in str(refused.value)
    assert "ray start --head" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("absent", ["ray", "pandas"])
def test_without_ray_the_error_names_the_extra(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "installed", lambda package: package != absent)

    with pytest.raises(DependencyError) as refused:
        runtime.embed(NAME, MADE, tmp_path, engine="ray")

    assert str(refused.value) == f"engine='ray' needs {absent}: pip install 'backbone-runtime[ray]'."


def test_the_command_says_so_with_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "a.png").write_bytes(b"")
    asked = ["--engine", "ray", "--address", "127.0.0.1:9", "--actors", "2", "--cpus-per-actor", "1"]

    assert main([NAME, str(tmp_path / "tiles"), "--out", str(tmp_path / "out"), *asked]) == 1
    assert capsys.readouterr().err.startswith("error: No Ray cluster answers at 127.0.0.1:9")
