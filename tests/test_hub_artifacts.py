"""load_model(artifacts="hf://ORG/REPO@REVISION"): the real client against a hub on this machine."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hub_server import Hub, Repository
from loopback import Answer, serving
from shared_stores import NAME, change, files_under, flipped, is_embedding, is_maps, part_of
from sharing_client import Client, Ended, client

from runtime import load_model
from runtime.artifacts import MANIFEST, Store

REPO = "our-lab/backbones"
PATH = f"{NAME}/{MANIFEST}"
OPTIONS = {"weights": "random", "backend": "onnx", "device": "cpu", "on_fallback": "error", "artifacts": f"hf://{REPO}"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> Iterator[Client]:
    with client(home, hub.url) as running:
        yield running


@pytest.fixture(scope="module")
def offline(hub: Hub, home: Path) -> Iterator[Client]:
    """The same user, whose client must not ask the hub."""
    with client(home, hub.url, HF_HUB_OFFLINE="1") as running:
        yield running


@pytest.fixture(scope="module")
def with_torch(hub: Hub, home: Path) -> Iterator[Client]:
    """The same user, in an environment that has torch."""
    with client(home, hub.url, HEAVY="1") as running:
        yield running


@pytest.fixture(autouse=True)
def forget(hub: Hub, home: Path) -> None:
    hub.forget()
    shutil.rmtree(home / "cache", ignore_errors=True)


@pytest.fixture
def repo(hub: Hub, built: Path) -> Repository:
    """A repository that holds all that was built: the embedding and two maps, as ONNX and as TorchScript."""
    return hub.hold(REPO, files_under(built))


def load(who: Client, name: str = NAME, **options: Any) -> Ended:
    return who.run("load", name, {k: v for k, v in (OPTIONS | options).items() if v is not None})


def cached(home: Path, commit: str | None = None) -> dict[str, bytes]:
    """Return the files that the cache serves from, of one commit or of all."""
    folder = home / "cache" / "backbone-runtime" / "hub" / "our-lab--backbones"
    found = files_under(folder / (commit or ""))
    return {name: body for name, body in found.items() if not name.startswith("refs/")}


def names_of(built: Path) -> list[str]:
    """Return the names of the embedding's graph and of its weights."""
    (artifact,) = filter(is_embedding, Store(built).read(NAME).artifacts)
    return [file.name for file in artifact.files]


def test_only_what_serves_is_fetched_and_it_gives_the_same_numbers(
    repo: Repository, hub: Hub, online: Client, home: Path, built: Path
) -> None:
    ended = load(online)

    assert ended.status == 0, ended.err
    (told,) = ended.lines
    assert (told["backend"], told["warnings"]) == ("onnx", [])
    assert sorted(hub.fetched()) == sorted(names_of(built))
    assert sorted(cached(home, repo.refs["main"])) == sorted([PATH, *(f"{NAME}/{name}" for name in names_of(built))])
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    expected = load_model(NAME, **OPTIONS | {"artifacts": built})(images)
    np.testing.assert_allclose(np.array(told["output"], np.float32), expected, rtol=0, atol=0)


def test_it_is_pinned_to_the_commit(repo: Repository, online: Client) -> None:
    repo.refs["v1"] = repo.refs["main"]

    (told,) = load(online, artifacts=f"hf://{REPO}@v1").lines

    assert told["artifacts"] == f"hf://{REPO}@{repo.refs['main']}"


def test_info_tells_what_of_a_repository_would_serve(repo: Repository, hub: Hub, online: Client, home: Path) -> None:
    arguments = [NAME, "--weights", "random", "--device", "cpu", "--backend", "onnx", "--json"]

    (told,) = online.run("info", *arguments, "--artifacts", f"hf://{REPO}").lines

    assert (told["serves"], told["artifacts"]) == ("onnx", f"hf://{REPO}@{repo.refs['main']}")
    assert [artifact["problems"] for artifact in told["built"]] == [[] for _ in told["built"]]
    assert hub.fetched() == []


def test_what_was_fetched_serves_without_the_network(
    repo: Repository, hub: Hub, online: Client, offline: Client
) -> None:
    first = load(online)
    hub.requests.clear()

    again = load(offline)
    pinned = load(online, artifacts=f"hf://{REPO}@{repo.refs['main']}")

    assert (again.status, again.out) == (0, first.out), again.err
    assert (pinned.status, pinned.out) == (0, first.out), pinned.err
    assert hub.requests == []


def test_offline_what_was_never_fetched_says_so(repo: Repository, hub: Hub, online: Client, offline: Client) -> None:
    never = load(offline)
    load(online)
    other = load(offline, out_indices=2)

    assert "HubError: hf://our-lab/backbones cannot be read: HF_HUB_OFFLINE is set, and it was never" in never.status
    assert f"HubError: hf://{REPO}@{repo.refs['main']} cannot be read: HF_HUB_OFFLINE is set" in other.status


def test_another_output_is_fetched_when_it_is_asked_for(
    repo: Repository, hub: Hub, online: Client, home: Path, built: Path
) -> None:
    load(online)
    hub.requests.clear()

    ended = load(online, out_indices=2)

    assert ended.status == 0, ended.err
    (maps,) = hub.fetched()  # the weights are shared
    assert maps.startswith("maps_2.cpu.fp32.")
    assert f"{NAME}/{names_of(built)[0]}" in cached(home, repo.refs["main"])


def test_a_branch_that_moved_is_followed_and_what_stayed_the_same_is_not_fetched_again(
    repo: Repository, hub: Hub, online: Client, home: Path, built: Path
) -> None:
    load(online)
    older = repo.refs["main"]
    newer = repo.commit(repo.files | {"README.md": b"# News"})
    hub.requests.clear()

    ended = load(online)

    (told,) = ended.lines
    assert told["artifacts"] == f"hf://{REPO}@{newer}"
    assert hub.fetched() == []
    assert cached(home, newer) == cached(home, older)


def test_the_environment_may_name_the_repository(repo: Repository, hub: Hub, tmp_path: Path) -> None:
    with client(tmp_path / "home", hub.url, BACKBONE_ARTIFACTS=f"hf://{REPO}") as configured:
        (told,) = load(configured, artifacts=None).lines

    assert told["artifacts"] == f"hf://{REPO}@{repo.refs['main']}"


@pytest.mark.parametrize(
    ("lacks", "options", "built_what"),
    [
        ("the model", {}, "none"),
        ("the variant", {"out_indices": 1}, "2, onnx for cpu, fp32, 32x32, random:0 weights; embedding, onnx for cpu"),
    ],
)
def test_a_repository_that_lacks_it_says_so_and_what_to_do(
    lacks: str, options: dict[str, Any], built_what: str, repo: Repository, online: Client
) -> None:
    if lacks == "the model":
        repo.commit({"README.md": b""})

    ended = load(online, **options)

    assert str(ended.status).startswith("ArtifactNotFoundError: No onnx artifact of 'test/tiny_vit' for ")
    assert f" in hf://{REPO}@{repo.refs['main']}. Built: {built_what}" in ended.status
    assert "Build it with: python -m exporters.build test/tiny_vit --format=onnx" in ended.status
    assert "--artifacts" not in ended.status
    assert f"Share it with: python -m exporters.push {REPO} {NAME}" in ended.status


def test_where_there_is_torch_it_serves_what_the_repository_lacks_with_a_warning(
    repo: Repository, hub: Hub, tmp_path: Path
) -> None:
    repo.commit({"README.md": b""})
    (tmp_path / "home").mkdir()
    with client(tmp_path / "home", hub.url, HEAVY="1") as with_torch:
        (told,) = load(
            with_torch, "universal/vit_tiny_patch16_224_random", on_fallback=None, backend=None, image_size=32
        ).lines

    assert told["backend"] == "eager"
    (warning,) = told["warnings"]
    assert f" in hf://{REPO}@{repo.refs['main']}. Built: none" in warning


def test_programs_are_fetched_only_for_a_backend_that_is_named(repo: Repository, hub: Hub, with_torch: Client) -> None:
    assert load(with_torch, backend="auto").status == 0
    assert [name for name in hub.fetched() if name.endswith(".torchscript")] == []
    (told,) = load(with_torch, backend="torchscript").lines

    assert told["backend"] == "torchscript"
    assert [name for name in hub.fetched() if name.endswith(".torchscript")] != []


def test_what_is_in_the_cache_serves_without_waiting_for_anybody(repo: Repository, online: Client, home: Path) -> None:
    load(online)
    (lock,) = (home / "cache").rglob("test--tiny_vit.lock")
    ended = []

    with FileLock(lock):  # as somebody who fetches another output holds it
        loading = threading.Thread(target=lambda: ended.append(load(online).status))
        loading.start()
        loading.join(30)
        in_time = list(ended)
    loading.join()

    assert in_time == [0]


def test_a_repository_of_programs_alone_is_not_what_auto_takes(
    hub: Hub, built: Path, online: Client, tmp_path: Path
) -> None:
    scripts = part_of(built, tmp_path / "scripts", lambda a: a.key.format == "torchscript")
    hub.hold(REPO, files_under(scripts.root))

    status = str(load(online).status)

    assert status.startswith("ArtifactNotFoundError: No onnx artifact of 'test/tiny_vit'")
    assert "has it as torchscript, a program of whoever pushed it, which nothing runs unasked" in status
    assert "ask for backend='torchscript'." in status


def test_info_names_the_program_that_a_repository_has(
    hub: Hub, built: Path, with_torch: Client, tmp_path: Path
) -> None:
    scripts = part_of(built, tmp_path / "scripts", lambda a: a.key.format == "torchscript")
    hub.hold(REPO, files_under(scripts.root))
    arguments = [NAME, "--weights", "random", "--device", "cpu", "--artifacts", f"hf://{REPO}", "--json"]

    (unnamed,) = with_torch.run("info", *arguments).lines
    (named,) = with_torch.run("info", *arguments, "--backend", "torchscript").lines

    reasons = {chance["backend"]: chance["reason"] for chance in unnamed["candidates"]}
    assert {artifact["key"]["format"] for artifact in unnamed["built"]} == {"torchscript"}
    assert "has it as torchscript, a program of whoever pushed it" in reasons["torchscript"]
    assert "exporters.build" not in reasons["torchscript"]
    assert (unnamed["serves"], named["serves"]) == ("eager", "torchscript")


def gone(repo: Repository, hub: Hub, built: Path) -> None:
    hub.repositories.clear()


def gate(repo: Repository, hub: Hub, built: Path) -> None:
    repo.gated = True
    hub.said.answers[f"/{REPO}/resolve/{repo.refs['main']}/{PATH}"] = Answer(
        status=401, headers={"X-Error-Code": "GatedRepo"}
    )


def move(repo: Repository, hub: Hub, built: Path) -> None:
    repo.refs = {"trunk": repo.refs["main"]}


def break_manifest(repo: Repository, hub: Hub, built: Path) -> None:
    repo.commit(repo.files | {PATH: repo.files[PATH][:100]})


def escape(repo: Repository, hub: Hub, built: Path) -> None:
    name = "../../../escaped"
    repo.commit(
        repo.files | {PATH: change(repo.files[PATH], lambda data: data["artifacts"][0]["files"][0].update(name=name))}
    )


def alter_in_the_repository(repo: Repository, hub: Hub, built: Path) -> None:
    graph = f"{NAME}/{names_of(built)[0]}"
    repo.commit(repo.files | {graph: flipped(repo.files[graph])})


def alter_on_the_way(repo: Repository, hub: Hub, built: Path) -> None:
    graph = f"{NAME}/{names_of(built)[0]}"
    path = f"GET /{REPO}/resolve/{repo.refs['main']}/{graph}"
    hub.said.answers[path] = Answer(flipped(repo.files[graph]))


def trouble(repo: Repository, hub: Hub, built: Path) -> None:
    hub.said.answers[f"/api/models/{REPO}"] = Answer(status=503)


@pytest.mark.parametrize(
    ("happens", "kind", "reason"),
    [
        (gone, "HubError", f"hf://{REPO} does not exist, or the hub does not show it to you"),
        (gate, "HubError", "is gated. Accept its terms at https://huggingface.co/our-lab/backbones, then run"),
        (move, "HubError", f"{REPO} has no revision main"),
        (trouble, "HubError", "the hub answers with an error: "),
        (break_manifest, "ManifestError", "is not a valid manifest (JSONDecodeError"),
        (escape, "ManifestError", "lists '../../../escaped', which is not a plain file name"),
        (alter_in_the_repository, "ArtifactCorruptError", "is not what its manifest says"),
        (alter_on_the_way, "ArtifactCorruptError", "has another SHA-256 than the manifest says"),
    ],
)
def test_what_cannot_be_had_is_an_error_of_ours(
    happens: Callable[[Repository, Hub, Path], None],
    kind: str,
    reason: str,
    repo: Repository,
    hub: Hub,
    online: Client,
    home: Path,
    built: Path,
) -> None:
    happens(repo, hub, built)

    ended = load(online)

    assert str(ended.status).startswith(f"{kind}: ")
    assert reason in str(ended.status)
    assert cached(home) == {}


def test_a_hub_that_is_gone_is_told_and_what_is_pinned_still_serves(
    repo: Repository, hub: Hub, online: Client, home: Path
) -> None:
    load(online)
    with serving() as gone_hub:
        pass
    with client(home, gone_hub.url) as lonely:
        branch, pinned = load(lonely), load(lonely, artifacts=f"hf://{REPO}@{repo.refs['main']}")

    assert str(branch.status).startswith(f"HubError: hf://{REPO} cannot be reached: [Errno")
    assert pinned.status == 0, pinned.err


def test_a_full_disk_is_told(repo: Repository, online: Client, home: Path) -> None:
    ended = online.run("load", NAME, OPTIONS, file_limit=100_000)

    assert str(ended.status).startswith(f"StoreError: {home / 'cache'}")
    assert "cannot be written: File too large" in str(ended.status)
    assert cached(home) == {}
    assert load(online).status == 0


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_file_of_the_cache_is_fetched_anew(
    damage: str, repo: Repository, hub: Hub, online: Client, home: Path, built: Path
) -> None:
    load(online)
    weights = names_of(built)[1]
    (path,) = (home / "cache").rglob(weights)
    path.write_bytes(b"cut") if damage == "cut" else path.unlink()
    hub.requests.clear()

    assert load(online).status == 0

    assert hub.fetched() == [weights]


def test_an_altered_file_of_the_cache_is_found_by_a_full_check(
    repo: Repository, online: Client, home: Path, built: Path
) -> None:
    load(online)
    (path,) = (home / "cache").rglob(names_of(built)[1])
    path.write_bytes(flipped(path.read_bytes()))

    ended = load(online, verify="full")

    assert str(ended.status).startswith("ArtifactCorruptError: ")
    assert str(ended.status).endswith("Delete it and load again: it is fetched anew.")
    path.unlink()
    assert load(online, verify="full").status == 0


def test_the_eager_backend_asks_no_hub(repo: Repository, hub: Hub, with_torch: Client) -> None:
    (told,) = load(with_torch, "universal/vit_tiny_patch16_224_random", backend="eager", image_size=32).lines

    assert told["backend"] == "eager"
    assert hub.requests == []


def test_an_address_that_is_none_is_an_error(online: Client) -> None:
    assert str(load(online, artifacts="hf://backbones").status).startswith(
        "OptionError: 'backbones' is no repository of the Hugging Face hub"
    )


def test_maps_alone_do_not_answer_for_the_embedding(hub: Hub, built: Path, online: Client, tmp_path: Path) -> None:
    hub.hold(REPO, files_under(part_of(built, tmp_path / "maps", is_maps).root))

    assert str(load(online).status).startswith("ArtifactNotFoundError: No onnx artifact of 'test/tiny_vit' for embed")
    assert hub.fetched() == []
