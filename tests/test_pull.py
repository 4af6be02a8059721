"""Pulling artifacts: the real client against a hub on this machine, where torch cannot be imported."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, Repository
from loopback import Answer, serving
from shared_stores import NAME, change, files_under, flipped, is_embedding, is_maps, part_of
from sharing_client import Client, client

import runtime
from runtime import load_model
from runtime.artifacts import MANIFEST, Store
from runtime.manifest import Manifest
from runtime.publishing import workspace
from runtime.sharing import command

REPO = "our-lab/backbones"
PATH = f"{NAME}/{MANIFEST}"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub) as running:
        yield running


@pytest.fixture(scope="module")
def reader(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(tmp_path_factory.mktemp("reader"), hub.url) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(hub: Hub) -> None:
    hub.forget()


@pytest.fixture
def repo(hub: Hub, built: Path, tmp_path: Path) -> Repository:
    """A repository that holds the embedding, as ONNX."""
    return hub.hold(REPO, files_under(part_of(built, tmp_path / "pushed", is_embedding).root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def manifest_of(files: dict[str, bytes]) -> Manifest:
    return Manifest.from_text(files[PATH].decode(), "test")


def names_of(repo: Repository) -> list[str]:
    """Return the names of the graph and of its weights."""
    return [file.name for file in manifest_of(repo.files).artifacts[0].files]


def hidden(root: Path) -> list[str]:
    """Return the files and folders that a store keeps for itself, but for locks."""
    return [p.name for p in root.rglob("*") if p.name.startswith(".") and p.name not in (".locks", ".staging")]


def test_what_was_pushed_is_pulled_byte_for_byte_and_serves(
    repo: Repository, hub: Hub, reader: Client, built: Path, root: Path
) -> None:
    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 0, ended.err
    assert ended.out.splitlines() == [
        f"hf://{REPO} is at commit {repo.refs['main']}.",
        f"{NAME}: pulled, 0.4 MB fetched",
        "  embedding, onnx for cpu, fp32, 32x32, random:0 weights",
        f"The store is {root}.",
    ]
    assert files_under(root) == {name: body for name, body in repo.files.items() if name.startswith(NAME)}
    assert hidden(root) == []
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    options: dict[str, Any] = {"backend": "onnx", "weights": "random", "on_fallback": "error", "verify": "full"}
    pulled, original = (load_model(NAME, artifacts=where, **options)(images) for where in (root, built))
    np.testing.assert_array_equal(pulled, original)


def test_only_what_the_manifest_lists_is_fetched(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    repo.commit(repo.files | {"README.md": b"# Ours", f"{NAME}/weights.0.data": b"left over", "run.py": b"import os"})

    assert reader.run("pull", REPO, "--artifacts", root).status == 0

    assert sorted(hub.fetched()) == sorted(names_of(repo))
    assert sorted(files_under(root)) == sorted([PATH, *(f"{NAME}/{name}" for name in names_of(repo))])


def test_pulling_again_is_nothing_to_do(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    reader.run("pull", REPO, "--artifacts", root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*") if path.is_file() and path.suffix != ".lock"}
    hub.requests.clear()

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert (ended.status, ended.out.splitlines()[1]) == (0, f"{NAME}: up to date")
    assert hub.fetched() == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_programs_are_left_out_unless_allowed(hub: Hub, reader: Client, built: Path, root: Path) -> None:
    repo = hub.hold(REPO, files_under(built))

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 0
    assert "  left out: embedding, torchscript, fp32, 32x32, random:0 weights (a program of whoever" in ended.out
    assert {artifact.key.format for artifact in Store(root).read(NAME).artifacts} == {"onnx"}
    assert [path for path in files_under(root) if path.endswith(".torchscript")] == []
    assert reader.run("pull", REPO, "--artifacts", root, "--allow-code").status == 0
    assert files_under(root) == {name: body for name, body in repo.files.items() if name.startswith(NAME)}


def test_a_repository_of_programs_alone_leaves_no_trace(hub: Hub, reader: Client, built: Path, tmp_path: Path) -> None:
    store = part_of(built, tmp_path / "pushed", lambda a: a.key.format == "torchscript")
    hub.hold(REPO, files_under(store.root))

    ended = reader.run("pull", REPO, "--artifacts", tmp_path / "store", "--json")

    (told,) = ended.lines
    assert (ended.status, told["status"], told["artifacts"], len(told["left_out"])) == (0, "left out", [], 2)
    assert files_under(tmp_path / "store") == {}
    assert hub.fetched() == []


def test_what_the_store_has_stays_and_shared_weights_are_not_fetched_again(
    repo: Repository, hub: Hub, reader: Client, built: Path, root: Path
) -> None:
    (maps,) = part_of(built, root, is_maps).read(NAME).artifacts
    graph, weights = names_of(repo)
    assert weights in [file.name for file in maps.files]

    assert reader.run("pull", REPO, "--artifacts", root).status == 0

    assert hub.fetched() == [graph]
    (embedding,) = manifest_of(repo.files).artifacts
    assert Store(root).read(NAME).artifacts == (maps, embedding)
    for artifact in (maps, embedding):
        Store(root).check(NAME, artifact, full=True)


def test_an_artifact_of_the_same_key_is_replaced(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    reader.run("pull", REPO, "--artifacts", root)
    graph, weights = names_of(repo)
    renamed = "embedding.cpu.fp32.newer.onnx"
    files = {name: body for name, body in repo.files.items() if name != f"{NAME}/{graph}"}
    files[f"{NAME}/{renamed}"] = repo.files[f"{NAME}/{graph}"]
    files[PATH] = change(files[PATH], lambda data: data["artifacts"][0]["files"][0].update(name=renamed))
    repo.commit(files)

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert f"{NAME}: pulled" in ended.out
    assert sorted(files_under(root)) == sorted([PATH, f"{NAME}/{renamed}", f"{NAME}/{weights}"])


@pytest.mark.parametrize("kind", ["branch", "tag", "commit", "option"])
def test_a_revision_is_what_is_pulled(kind: str, repo: Repository, reader: Client, built: Path, root: Path) -> None:
    older = repo.refs["main"]
    repo.refs |= {"lab/next": older, "v1.0": older}
    repo.commit(files_under(part_of(built, root.parent / "newer", is_maps).root))
    named = {"branch": ["@lab/next"], "tag": ["@v1.0"], "commit": [f"@{older}"], "option": ["", "--revision", "v1.0"]}
    at, *options = named[kind]

    ended = reader.run("pull", f"{REPO}{at}", "--artifacts", root, "--json", *options)

    (told,) = ended.lines
    assert (told["commit"], told["status"]) == (older, "pulled")
    assert [artifact.key.out_indices for artifact in Store(root).read(NAME).artifacts] == [None]


def test_a_glob_names_what_comes(hub: Hub, reader: Client, built: Path, root: Path) -> None:
    pushed = part_of(built, root.parent / "pushed", is_embedding)
    part_of(built, pushed.root, is_embedding, "other/model")
    hub.hold(REPO, files_under(pushed.root))

    assert reader.run("pull", REPO, "other/*", "--artifacts", root).status == 0

    assert {name.rpartition("/")[0] for name in files_under(root)} == {"other/model"}
    ended = reader.run("pull", REPO, "third/*", "--artifacts", root)
    assert ended.status == 2
    assert "has no model that matches 'third/*'. It has: other/model, test/tiny_vit." in ended.err


def test_the_python_function_does_the_same(repo: Repository, reader: Client, root: Path) -> None:
    arguments = ("runtime.pull", f"hf://{REPO}", {"pattern": "test/*", "artifacts": str(root)})

    assert reader.run(*arguments).lines == [[[NAME, "pulled", repo.refs["main"]]]]
    assert reader.run(*arguments).lines == [[[NAME, "up to date", repo.refs["main"]]]]


def test_a_file_altered_in_the_repository_is_refused_before_it_is_fetched(
    repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    weights = f"{NAME}/{names_of(repo)[1]}"
    repo.commit(repo.files | {weights: flipped(repo.files[weights])})

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert f"{weights} is not what its manifest says. Nothing was fetched" in ended.err
    assert (hub.fetched(), files_under(root)) == ([], {})


def test_a_file_missing_from_the_repository_is_told(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    weights = f"{NAME}/{names_of(repo)[1]}"
    repo.commit({name: body for name, body in repo.files.items() if name != weights})

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert f"lacks {weights}, though its manifest lists it." in ended.err
    assert (hub.fetched(), files_under(root)) == ([], {})


def test_a_file_altered_on_its_way_is_not_published_and_not_kept(
    repo: Repository, hub: Hub, reader: Client, built: Path, root: Path
) -> None:
    part_of(built, root, is_maps)
    before = files_under(root)
    graph = f"{NAME}/{names_of(repo)[0]}"
    path = f"GET /{REPO}/resolve/{repo.refs['main']}/{graph}"
    hub.said.answers[path] = Answer(flipped(repo.files[graph]))

    ended = reader.run("pull", REPO, "--artifacts", root, "--json")

    (told,) = ended.lines
    assert (ended.status, told["status"], told["error"]) == (1, "failed", "ArtifactCorruptError")
    assert f"{graph} has another SHA-256 than the manifest says" in told["detail"]
    assert files_under(root) == before
    hub.said.forget()
    assert reader.run("pull", REPO, "--artifacts", root).status == 0


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    weights = f"{NAME}/{names_of(repo)[1]}"
    body = repo.files[weights]
    good = Answer(body, headers={"ETag": '"x"', "X-Repo-Commit": repo.refs["main"]})
    path = f"GET /{REPO}/resolve/{repo.refs['main']}/{weights}"
    hub.said.answers[path] = [Answer(body, headers=good.headers, sends=100_000), good]

    assert reader.run("pull", REPO, "--artifacts", root).status == 0

    resumed = [asked["range"] for asked in hub.asked if "range" in asked]
    assert len(resumed) == 1
    assert 0 < int(resumed[0].removeprefix("bytes=").removesuffix("-")) <= 100_000


def test_what_came_whole_before_it_broke_is_not_fetched_again(
    repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    weights = names_of(repo)[1]
    path = f"GET /{REPO}/resolve/{repo.refs['main']}/{NAME}/{weights}"
    hub.said.answers[path] = Answer(status=404, headers={"X-Error-Code": "EntryNotFound"})
    left = root / ".downloads" / "test--tiny_vit" / "our-lab--backbones" / "graph.0123abcd.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a killed process")

    assert reader.run("pull", REPO, "--artifacts", root).status == 1

    assert files_under(root) == {}
    assert not left.exists()
    hub.said.forget()
    hub.requests.clear()
    assert reader.run("pull", REPO, "--artifacts", root).status == 0
    assert hub.fetched() == [weights]
    assert hidden(root) == []


def test_a_pull_killed_at_work_leaves_what_was_there(
    repo: Repository, hub: Hub, reader: Client, built: Path, root: Path
) -> None:
    part_of(built, root, is_maps)
    before = files_under(root)
    graph = f"{NAME}/{names_of(repo)[0]}"
    reached = threading.Event()

    def stall(asked: Any) -> Answer:
        if asked.method == "GET" and asked.path.endswith(graph):
            reached.set()
            return Answer(repo.files[graph], sends=10, stalls=5)
        return reply(asked)

    reply, hub.reply = hub.reply, stall  # type: ignore[method-assign]
    try:
        with client(root.parent / "doomed", hub.url) as doomed:
            doomed.start("pull", REPO, "--artifacts", root)
            assert reached.wait(60)
            doomed.process.kill()
    finally:
        hub.reply = reply  # type: ignore[method-assign]

    assert files_under(root) == before
    assert reader.run("pull", REPO, "--artifacts", root).status == 0
    assert {a.key.out_indices for a in Store(root).read(NAME).artifacts} == {None, (-2, -1)}
    assert hidden(root) == []


def test_a_manifest_that_names_a_path_outside_its_folder_is_refused(
    repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    escape = change(repo.files[PATH], lambda data: data["artifacts"][0]["files"][0].update(name="../../escaped.onnx"))
    repo.commit(repo.files | {PATH: escape, "escaped.onnx": repo.files[f"{NAME}/{names_of(repo)[0]}"]})

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert "lists '../../escaped.onnx', which is not a plain file name inside the model's folder" in ended.err
    assert hub.fetched() == []
    assert list(root.parent.rglob("escaped.onnx")) == []


def test_a_model_whose_name_leads_out_of_the_store_is_not_seen(repo: Repository, reader: Client, root: Path) -> None:
    names = ["../evil", ".hidden/model", "a/../../evil", "a//b", "/abs"]
    repo.commit(repo.files | {f"{name}/{MANIFEST}": repo.files[PATH] for name in names})

    ended = reader.run("pull", REPO, "--artifacts", root, "--json")

    assert [told["model"] for told in ended.lines] == [NAME]


def test_one_damaged_model_does_not_hold_up_the_others(hub: Hub, reader: Client, built: Path, root: Path) -> None:
    pushed = part_of(built, root.parent / "pushed", is_embedding)
    part_of(built, pushed.root, is_embedding, "other/model")
    hub.hold(REPO, files_under(pushed.root) | {f"other/model/{MANIFEST}": b"{}"})

    ended = reader.run("pull", REPO, "--artifacts", root, "--json")

    assert ended.status == 1
    assert [(told["model"], told["status"]) for told in ended.lines] == [("other/model", "failed"), (NAME, "pulled")]
    assert {name.rpartition("/")[0] for name in files_under(root)} == {NAME}


def test_a_manifest_of_a_newer_release_says_what_to_do(repo: Repository, reader: Client, root: Path) -> None:
    repo.commit(repo.files | {PATH: change(repo.files[PATH], lambda data: data.update(schema_version=3))})

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert (
        "has schema version 3, this release reads up to 2. It was written by a newer release: pip install" in ended.err
    )
    assert files_under(root) == {}


def test_a_full_disk_is_told_and_loses_nothing(repo: Repository, reader: Client, built: Path, root: Path) -> None:
    before = files_under(part_of(built, root, is_maps).root)
    for name in list(before):
        if name.endswith(".data"):  # so that the weights have to come again
            (root / name).unlink()
    before = files_under(root)

    ended = reader.run("pull", REPO, "--artifacts", root, "--json", file_limit=100_000)

    (told,) = ended.lines
    assert (ended.status, told["error"]) == (1, "StoreError")
    assert f"{root} cannot be written: File too large" in told["detail"]
    assert files_under(root) == before
    assert reader.run("pull", REPO, "--artifacts", root).status == 0


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    vast = change(repo.files[PATH], lambda data: data["artifacts"][0]["files"][1].update(bytes=10**16))
    repo.commit(repo.files | {PATH: vast})

    ended = reader.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert "GB free, and 10000000.00 GB would be fetched. Nothing was." in ended.err
    assert hub.fetched() == []


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_file_of_the_store_is_mended(
    damage: str, repo: Repository, hub: Hub, reader: Client, root: Path
) -> None:
    reader.run("pull", REPO, "--artifacts", root)
    weights = names_of(repo)[1]
    whole = (root / NAME / weights).read_bytes()
    (root / NAME / weights).write_bytes(b"cut short" if damage == "cut" else flipped(whole))
    hub.requests.clear()

    assert reader.run("pull", REPO, "--artifacts", root).status == 0

    assert hub.fetched() == [weights]
    Store(root).check(NAME, Store(root).read(NAME).artifacts[0], full=True)


def test_a_pull_waits_for_a_build_of_the_model(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    ended = []
    with workspace(Store(root), NAME):  # as a build holds it
        waiting = threading.Thread(target=lambda: ended.append(reader.run("pull", REPO, "--artifacts", root)))
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive()
        assert (hub.fetched(), files_under(root)) == ([], {})
    waiting.join(60)

    assert ended[0].status == 0
    assert len(files_under(root)) == 3


def test_two_pulls_at_once_fetch_once(repo: Repository, hub: Hub, reader: Client, root: Path) -> None:
    with client(root.parent / "second", hub.url) as second:
        ended = []
        both = [
            threading.Thread(target=lambda c=c: ended.append(c.run("pull", REPO, "--artifacts", root)))
            for c in (reader, second)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(60)

    assert [e.status for e in ended] == [0, 0]
    assert sorted(hub.fetched()) == sorted(names_of(repo))


def gone(repo: Repository, hub: Hub) -> None:
    hub.repositories.clear()


def hide(repo: Repository, hub: Hub) -> None:
    repo.private = True


def gate(repo: Repository, hub: Hub) -> None:
    repo.gated = True


def trouble(repo: Repository, hub: Hub) -> None:
    hub.said.answers[f"/api/models/{REPO}"] = Answer(status=500)


def forbid(repo: Repository, hub: Hub) -> None:
    hub.said.answers[f"/api/models/{REPO}"] = Answer(status=403, headers={"X-Error-Message": "your plan ends here"})


def no_hub(repo: Repository, hub: Hub) -> None:
    hub.said.answers[f"/api/models/{REPO}"] = Answer(b"<html>log in to this network")


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (gone, "does not exist, or the hub does not show it to you. See https://huggingface.co/our-lab/backbones"),
        (hide, "does not exist, or the hub does not show it to you. See https://huggingface.co/our-lab/backbones"),
        (gate, "is gated. Accept its terms at https://huggingface.co/our-lab/backbones, then run `hf auth login`"),
        (trouble, "the hub answers with an error: "),
        (forbid, "your plan ends here"),
        (no_hub, f"hf://{REPO} cannot be reached: "),
    ],
)
def test_a_repository_that_cannot_be_had_says_why(
    happens: Callable[[Repository, Hub], None], reason: str, repo: Repository, hub: Hub, stranger: Client, root: Path
) -> None:
    happens(repo, hub)

    ended = stranger.run("pull", REPO, "--artifacts", root)

    assert ended.status == 1
    assert ended.err.startswith("error: ")
    assert reason in ended.err
    assert files_under(root) == {}


@pytest.fixture(scope="module")
def stranger(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Somebody whose token opens nothing."""
    with client(tmp_path_factory.mktemp("stranger"), hub.url, HF_TOKEN="hf_stranger") as running:
        yield running


def test_a_revision_that_does_not_exist_is_named(repo: Repository, reader: Client, root: Path) -> None:
    ended = reader.run("pull", f"{REPO}@v9", "--artifacts", root)

    assert ended.status == 1
    assert f"error: {REPO} has no revision v9. See https://huggingface.co/{REPO}/branches" in ended.err


def test_a_hub_that_is_gone_and_one_that_must_not_be_asked(hub: Hub, root: Path, tmp_path: Path) -> None:
    with serving() as gone:
        pass
    with client(tmp_path / "lonely", gone.url) as lonely:
        unreachable = lonely.run("pull", REPO, "--artifacts", root)
    with client(tmp_path / "offline", hub.url, HF_HUB_OFFLINE="1") as offline:
        refused = offline.run("pull", REPO, "--artifacts", root)

    assert (unreachable.status, refused.status, hub.requests) == (1, 1, [])
    assert f"error: hf://{REPO} cannot be reached: [Errno" in unreachable.err
    assert "HF_HUB_OFFLINE is set" in refused.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("not-a-repository",), "'not-a-repository' is no repository of the Hugging Face hub"),
        ((f"{REPO}@v1", "--revision", "v2"), "names the revision 'v1', and 'v2' was given, too"),
        (
            (REPO, "--artifacts", "hf://a/b"),
            "hf://a/b is a repository of the Hugging Face hub, and a pull needs a folder",
        ),
        ((), "the following arguments are required: ORG/REPO"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], reason: str, hub: Hub, reader: Client, root: Path) -> None:
    ended = reader.run("pull", "--artifacts", root, *arguments)

    assert (ended.status, ended.out, hub.requests) == (2, "", [])
    assert reason in " ".join(ended.err.split())


def test_a_repository_in_the_environment_is_no_folder_to_fill(hub: Hub, tmp_path: Path, repo: Repository) -> None:
    with client(tmp_path / "home", hub.url, BACKBONE_ARTIFACTS=f"hf://{REPO}") as configured:
        ended = configured.run("pull", REPO)
        called = configured.run("runtime.pull", REPO, {})

    reason = (
        f"BACKBONE_ARTIFACTS=hf://{REPO} is a repository of the Hugging Face hub, and a pull needs a folder to fill"
    )
    assert ended.status == 2
    assert f"{reason}: pass --artifacts DIR" in " ".join(ended.err.split())
    assert str(called.status).startswith(f"OptionError: {reason}")


def test_help_shows_an_example_and_what_the_exit_status_means(reader: Client) -> None:
    ended = reader.run("pull", "--help")

    assert ended.status == 0
    assert "python -m runtime.pull our-lab/backbones" in ended.out
    assert "exit status: 0 " in ended.out


def test_control_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "take", interrupt)

    assert command.main([REPO, "--artifacts", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: what was published stays; run the same command to go on\n"


def test_the_command_is_a_module_and_the_function_keeps_its_name() -> None:
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-m", "runtime.pull", "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("usage: python -m runtime.pull")
    assert callable(runtime.pull)
