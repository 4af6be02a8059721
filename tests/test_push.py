"""Pushing artifacts: the real client against a hub on this machine."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from environments import ROOT
from hub_server import GUEST, Hub, sha256
from loopback import Answer, serving
from shared_stores import NAME, change, files_under, flipped, is_embedding, is_maps, part_of
from sharing_client import Client, client

from exporters import push as command
from exporters.model_card import MARK
from runtime.artifacts import MANIFEST, Store
from runtime.manifest import Manifest
from runtime.sharing.command import parser_of_pull

REPO = "our-lab/backbones"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub) as running:
        yield running


@pytest.fixture(scope="module")
def owner(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(tmp_path_factory.mktemp("owner"), hub.url) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(hub: Hub) -> None:
    hub.forget()


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    """The embedding alone, as ONNX."""
    return part_of(built, tmp_path / "store", is_embedding)


def listed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return what a repository holds beyond what the hub and the card put there."""
    return {name: body for name, body in files.items() if name not in (".gitattributes", "README.md")}


def restricted(built: Path, root: Path, name: str = "pathology/mahmood_uni") -> Store:
    """Return a store in which tiny artifacts pass for those of a gated backbone."""
    store = part_of(built, root, is_embedding, name)
    (artifact,) = store.read(name).artifacts
    (store.folder(name) / MANIFEST).write_text(
        Manifest(name, (replace(artifact, key=replace(artifact.key, weights="pretrained")),)).to_text()
    )
    return store


def test_a_push_makes_the_repository_and_sends_what_the_manifest_lists(hub: Hub, owner: Client, built: Path) -> None:
    ended = owner.run("push", REPO, "--artifacts", built)

    assert (ended.status, ended.out.splitlines()[0]) == (0, f"note: {REPO} does not exist yet: a public one is made.")
    repo = hub.repositories[REPO]
    assert listed(repo.files) == files_under(built)
    assert repo.files["README.md"].decode().count(MARK) == 1
    assert f"Pushed 0.6 MB: hf://{REPO}, commit {repo.refs['main']}." in ended.out
    assert repo.messages[repo.refs["main"]] == f"Artifacts of {NAME}"


def test_what_no_manifest_lists_stays_at_home(hub: Hub, owner: Client, store: Store) -> None:
    (store.folder(NAME) / "weights.0123456789ab.data").write_bytes(b"left by a killed build")
    (store.root / ".staging" / NAME).mkdir(parents=True)
    (store.root / ".staging" / NAME / MANIFEST).write_text("{}")
    (store.root / "notes.txt").write_text("mine")

    assert owner.run("push", REPO, "--artifacts", store.root).status == 0

    graph, weights = (f"{NAME}/{file.name}" for file in store.read(NAME).artifacts[0].files)
    assert set(listed(hub.repositories[REPO].files)) == {graph, weights, f"{NAME}/{MANIFEST}"}


def test_a_second_push_of_the_same_changes_nothing(hub: Hub, owner: Client, store: Store) -> None:
    owner.run("push", REPO, "--artifacts", store.root)
    commit = hub.repositories[REPO].refs["main"]
    hub.requests.clear()

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert (ended.status, ended.out) == (0, f"hf://{REPO} is up to date.\n")
    assert hub.written() == []
    assert hub.repositories[REPO].refs["main"] == commit


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(hub: Hub, owner: Client, store: Store) -> None:
    ended = owner.run("push", REPO, "--artifacts", store.root, "--dry-run")

    assert ended.status == 0
    for file in store.read(NAME).artifacts[0].files:
        assert f"  {NAME}/{file.name}: would be sent, {file.bytes / 1e6:.2f} MB" in ended.out
    assert "Nothing was pushed: without --dry-run 0.4 MB go to" in ended.out
    assert (hub.written(), hub.repositories) == ([], {})


def test_machines_are_told_the_same(hub: Hub, owner: Client, store: Store) -> None:
    arguments = ("push", REPO, "--artifacts", store.root, "--json")
    (would,), (did,), (same,) = (owner.run(*arguments, *more).lines for more in (["--dry-run"], [], []))

    commit = hub.repositories[REPO].refs["main"]
    assert [told["status"] for told in (would, did, same)] == ["would push", "pushed", "up to date"]
    assert [told["commit"] for told in (would, did, same)] == [None, commit, commit]
    assert did["uploads"] == would["uploads"]
    assert set(did["uploads"]) == {*files_under(store.root), "README.md"}
    assert (did["repository"], did["branch"], did["private"], did["models"]) == (REPO, "main", False, [NAME])
    assert did["bytes"] == sum(len(hub.repositories[REPO].files[name]) for name in did["uploads"])


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_artifact_is_not_sent(damage: str, hub: Hub, owner: Client, store: Store) -> None:
    path = store.folder(NAME) / store.read(NAME).artifacts[0].files[1].name
    if damage == "altered":
        path.write_bytes(flipped(path.read_bytes()))
    else:
        path.unlink()

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {path} ")
    assert {"altered": "another SHA-256 than the manifest says", "missing": "is missing"}[damage] in ended.err
    build = f"python -m exporters.build {NAME} --format=onnx --target=cpu --out-indices=none --weights=random --seed=0"
    assert ended.err.splitlines()[1:] == [f"{build} --import=plugin --artifacts={store.root} --force"]
    assert hub.requests == []


def test_what_pull_would_refuse_is_not_sent(hub: Hub, owner: Client, store: Store) -> None:
    path = store.folder(NAME) / MANIFEST
    key = store.read(NAME).artifacts[0].key.to_json()
    path.write_bytes(change(path.read_bytes(), lambda data: data["artifacts"][0].update(key=key | {"weights": "mine"})))

    ended = owner.run("push", REPO, "--artifacts", store.root, "--redistribution-allowed")

    assert (ended.status, ended.out) == (1, "")
    assert f"error: {path} lists an artifact of the weights 'mine', which no build names so. Nothing was" in ended.err
    assert f"Delete {path} and build the model again" in ended.err
    assert (hub.written(), hub.repositories) == ([], {})


def test_a_branch_is_made_from_the_main_one_which_stays(hub: Hub, owner: Client, store: Store) -> None:
    repo = hub.hold(REPO, {"LICENSE": b"mine"})
    before = repo.refs["main"]

    ended = owner.run("push", REPO, "--artifacts", store.root, "--branch", "next/1", "--message", "For a look")

    assert (ended.status, repo.refs["main"]) == (0, before), ended.err
    branch = repo.commits[repo.refs["next/1"]]
    assert branch["LICENSE"] == b"mine"
    assert files_under(store.root).items() <= branch.items()
    assert repo.messages[repo.refs["next/1"]] == "For a look"
    assert owner.run("push", REPO, "--artifacts", store.root, "--revision", "next/1").out.endswith("is up to date.\n")


def test_a_branch_of_what_the_main_one_holds_is_made_without_a_commit(hub: Hub, owner: Client, store: Store) -> None:
    owner.run("push", REPO, "--artifacts", store.root)
    repo = hub.repositories[REPO]

    ended = owner.run("push", REPO, "--artifacts", store.root, "--branch", "v1.2")

    assert ended.status == 0, ended.err
    assert repo.refs["v1.2"] == repo.refs["main"]


def test_a_pull_request_leaves_the_main_branch_alone(hub: Hub, owner: Client, store: Store) -> None:
    repo = hub.hold(REPO)
    before = repo.refs["main"]

    ended = owner.run("push", REPO, "--artifacts", store.root, "--create-pr", "--json")

    (told,) = ended.lines
    assert (ended.status, repo.refs["main"]) == (0, before)
    assert (told["pull_request"], told["commit"]) == (f"{hub.url}/{REPO}/discussions/1", repo.refs["refs/pr/1"])
    assert files_under(store.root).items() <= repo.commits[told["commit"]].items()


def test_a_pull_request_needs_no_right_to_write(hub: Hub, store: Store, tmp_path: Path) -> None:
    repo = hub.hold(REPO)
    with client(tmp_path / "guest", hub.url, HF_TOKEN=GUEST) as guest:
        directly = guest.run("push", REPO, "--artifacts", store.root)
        proposed = guest.run("push", REPO, "--artifacts", store.root, "--create-pr")

    assert (directly.status, proposed.status) == (1, 0)
    assert "You have no right to do that" in directly.err
    assert f"Pushed 0.4 MB: {hub.url}/{REPO}/discussions/1." in proposed.out
    assert files_under(store.root).items() <= repo.commits[repo.refs["refs/pr/1"]].items()


def test_a_new_repository_is_private_if_asked(hub: Hub, owner: Client, store: Store) -> None:
    assert owner.run("push", REPO, "--artifacts", store.root, "--private").status == 0
    assert hub.repositories[REPO].private
    assert owner.run("push", REPO, "--artifacts", store.root, "--private").out.endswith("is up to date.\n")


def test_a_public_repository_does_not_become_private(hub: Hub, owner: Client, store: Store) -> None:
    hub.hold(REPO)

    ended = owner.run("push", REPO, "--artifacts", store.root, "--private")

    assert ended.status == 1
    assert f"{REPO} exists and is public: --private only decides about a new one." in ended.err
    assert hub.written() == []


@pytest.mark.parametrize("exists", [True, False])
def test_gated_weights_are_not_made_public(exists: bool, hub: Hub, owner: Client, built: Path, tmp_path: Path) -> None:
    if exists:
        hub.hold(REPO)

    ended = owner.run("push", REPO, "--artifacts", restricted(built, tmp_path).root)

    assert ended.status == 1
    assert f"{REPO} is public" in ended.err
    assert "pathology/mahmood_uni: gated, " in ended.err
    assert "its licence CC-BY-NC-ND-4.0 forbids" in ended.err
    assert "--redistribution-allowed" in ended.err
    assert hub.written() == []


def test_gated_weights_may_go_to_a_private_repository(hub: Hub, owner: Client, built: Path, tmp_path: Path) -> None:
    hub.hold(REPO, private=True)

    ended = owner.run("push", REPO, "--artifacts", restricted(built, tmp_path).root)

    assert ended.status == 0, ended.err
    assert "note: pathology/mahmood_uni: gated, " in ended.out
    assert ": keep the repository private." in ended.out
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "licence: CC-BY-NC-ND-4.0; gated: accept the publisher's terms" in card


def test_gated_weights_become_public_only_when_told_that_it_is_allowed(
    hub: Hub, owner: Client, built: Path, tmp_path: Path
) -> None:
    ended = owner.run("push", REPO, "--artifacts", restricted(built, tmp_path).root, "--redistribution-allowed")

    assert ended.status == 0, ended.err
    assert ": you said that its publisher permits it." in ended.out
    assert not hub.repositories[REPO].private


def test_a_glob_names_what_goes(hub: Hub, owner: Client, built: Path, store: Store) -> None:
    part_of(built, store.root, is_embedding, "other/model")

    assert owner.run("push", REPO, "test/*", "--artifacts", store.root).status == 0

    assert {name.rpartition("/")[0] for name in listed(hub.repositories[REPO].files)} == {NAME}
    assert owner.run("push", REPO, "other/*", "--artifacts", store.root).status == 0
    assert {name.rpartition("/")[0] for name in listed(hub.repositories[REPO].files)} == {NAME, "other/model"}
    card = hub.repositories[REPO].files["README.md"].decode()
    assert ("## test/tiny_vit" in card, "## other/model" in card) == (True, True)


def test_what_others_pushed_of_a_model_stays(
    hub: Hub, owner: Client, built: Path, store: Store, tmp_path: Path
) -> None:
    owner.run("push", REPO, "--artifacts", store.root)
    maps = part_of(built, tmp_path / "theirs", is_maps)
    hub.requests.clear()

    ended = owner.run("push", REPO, "--artifacts", maps.root, "--json")

    files = hub.repositories[REPO].files
    merged = Manifest.from_text(files[f"{NAME}/{MANIFEST}"].decode(), "hub")
    assert ended.lines[0]["deletions"] == []
    assert {a.key for a in merged.artifacts} == {a.key for s in (store, maps) for a in s.read(NAME).artifacts}
    for file in {file for artifact in merged.artifacts for file in artifact.files}:
        assert sha256(files[f"{NAME}/{file.name}"]) == file.sha256
    weights = store.read(NAME).artifacts[0].files[1]
    assert f"{NAME}/{weights.name}" not in ended.lines[0]["uploads"]  # both read it


def test_what_is_replaced_is_removed(hub: Hub, owner: Client, store: Store) -> None:
    owner.run("push", REPO, "--artifacts", store.root)
    (artifact,) = store.read(NAME).artifacts
    body = b"another build" * 100
    graph = replace(artifact.graph, name="embedding.cpu.fp32.new.onnx", bytes=len(body), sha256=sha256(body))
    (store.folder(NAME) / graph.name).write_bytes(body)
    manifest = Manifest(NAME, (replace(artifact, files=(graph, artifact.files[1])),))
    (store.folder(NAME) / MANIFEST).write_text(manifest.to_text())

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert f"  {NAME}/{artifact.graph.name}: removed, no manifest lists it any more" in ended.out
    assert set(listed(hub.repositories[REPO].files)) == {
        f"{NAME}/{name}" for name in (graph.name, artifact.files[1].name, MANIFEST)
    }


def test_a_card_that_somebody_wrote_stays(hub: Hub, owner: Client, store: Store) -> None:
    hub.hold(REPO, {"README.md": b"# Ours\n"})

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert "note: README.md was not written by this command, and stays as it is." in ended.out
    assert hub.repositories[REPO].files["README.md"] == b"# Ours\n"


def test_somebody_elses_push_in_the_meantime_is_not_overwritten(hub: Hub, owner: Client, store: Store) -> None:
    repo = hub.hold(REPO)
    hub.meanwhile = lambda: repo.commit({"theirs": b"new"})

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert (ended.status, repo.files) == (1, {"theirs": b"new"})
    assert "was changed by somebody else in the meantime. Nothing was pushed: run the command again." in ended.err
    assert owner.run("push", REPO, "--artifacts", store.root).status == 0
    assert repo.files["theirs"] == b"new"


def test_large_files_arrive_whole_in_parts(hub: Hub, owner: Client, store: Store) -> None:
    hub.part_size = 100_000

    assert owner.run("push", REPO, "--artifacts", store.root).status == 0

    assert len(hub.parts) >= 4
    assert listed(hub.repositories[REPO].files) == files_under(store.root)


def test_what_was_sent_before_it_broke_is_not_sent_again(hub: Hub, owner: Client, store: Store) -> None:
    graph, weights = (f"PUT /storage/{file.sha256}" for file in store.read(NAME).artifacts[0].files)
    hub.said.answers[weights] = Answer(status=400)

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert ended.status == 1
    assert f"error: hf://{REPO}: the hub answers with an error: " in ended.err
    assert listed(hub.repositories[REPO].files) == {}
    hub.said.forget()
    hub.requests.clear()
    assert owner.run("push", REPO, "--artifacts", store.root).status == 0
    assert [request for request in hub.requests if request in (graph, weights)] == [weights]


def test_a_storage_in_trouble_for_a_moment_is_tried_again(hub: Hub, owner: Client, store: Store) -> None:
    weights = f"PUT /storage/{store.read(NAME).artifacts[0].files[1].sha256}"
    in_trouble, reply = [Answer(status=503)], hub.reply
    hub.reply = lambda asked: (  # type: ignore[method-assign]
        in_trouble.pop() if f"{asked.method} {asked.path}" == weights and in_trouble else reply(asked)
    )
    try:
        assert owner.run("push", REPO, "--artifacts", store.root).status == 0
    finally:
        del hub.reply  # type: ignore[method-assign]

    assert hub.requests.count(weights) == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data["artifacts"][0]["files"][0].update(name="../../x.onnx"), "'../../x.onnx', which is no"),
        (lambda data: data.update(schema_version=9), "has schema version 9"),
    ],
)
def test_a_repository_that_cannot_be_understood_is_not_overwritten(
    damage: Any, reason: str, hub: Hub, owner: Client, store: Store
) -> None:
    owner.run("push", REPO, "--artifacts", store.root)
    repo, path = hub.repositories[REPO], f"{NAME}/{MANIFEST}"
    repo.commit(repo.files | {path: change(repo.files[path], damage)})
    hub.requests.clear()

    ended = owner.run("push", REPO, "--artifacts", store.root)

    assert (ended.status, hub.written()) == (1, [])
    assert reason in ended.err


def test_a_damaged_manifest_blocks_what_touches_its_model_alone(
    hub: Hub, owner: Client, built: Path, store: Store
) -> None:
    part_of(built, store.root, is_embedding, "test/other")
    owner.run("push", REPO, NAME, "--artifacts", store.root)
    repo, path = hub.repositories[REPO], f"{NAME}/{MANIFEST}"
    damaged = repo.files[path][:100]
    repo.commit(repo.files | {path: damaged})
    hub.requests.clear()

    refused = owner.run("push", REPO, "--artifacts", store.root)
    assert (refused.status, hub.written()) == (1, [])
    assert f"{path} is not a valid manifest" in refused.err
    assert "Nothing was pushed. The other models can be pushed: name them with GLOB." in refused.err

    ended = owner.run("push", REPO, "test/other", "--artifacts", store.root)
    assert ended.status == 0
    assert f"note: {NAME} stays as it is in the repository: hf://{REPO}@" in ended.out
    assert f"test/other/{MANIFEST}" in repo.files
    assert repo.files[path] == damaged
    assert f"## {NAME}\n\nIts manifest could not be read" in repo.files["README.md"].decode()
    assert "is up to date." in owner.run("push", REPO, "test/other", "--artifacts", store.root).out


def test_without_a_token_nothing_is_pushed_and_the_way_in_is_told(hub: Hub, store: Store, tmp_path: Path) -> None:
    with client(tmp_path / "stranger", hub.url, HF_TOKEN="hf_wrong") as stranger:
        new = stranger.run("push", REPO, "--artifacts", store.root)
        hub.hold(REPO)
        existing = stranger.run("push", REPO, "--artifacts", store.root)

    for ended in (new, existing):
        assert ended.status == 1
        assert "the hub refuses: " in ended.err
        assert "run `hf auth login` or set HF_TOKEN" in ended.err
    assert listed(hub.repositories[REPO].files) == {}


def test_a_hub_that_is_gone_is_told(store: Store, tmp_path: Path) -> None:
    with serving() as gone:
        pass
    with client(tmp_path / "lonely", gone.url) as lonely:
        ended = lonely.run("push", REPO, "--artifacts", store.root)

    assert ended.status == 1
    assert f"error: hf://{REPO} cannot be reached: [Errno" in ended.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((REPO, "no/such*"), "has no artifacts of a model that matches 'no/such*'. It has: test/tiny_vit."),
        (("not-a-repository",), "'not-a-repository' is no repository of the Hugging Face hub"),
        ((REPO, "--branch", "a..b"), "'a..b' is no revision"),
        ((REPO, "--create-pr", "--branch", "next"), "--create-pr is made against the main branch"),
        ((REPO, "--artifacts", "hf://a/b"), "Name a folder with --artifacts"),
        ((), "the following arguments are required: ORG/REPO"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], reason: str, hub: Hub, owner: Client, store: Store) -> None:
    ended = owner.run("push", "--artifacts", store.root, *arguments)

    assert (ended.status, ended.out, hub.requests) == (2, "", [])
    assert reason in " ".join(ended.err.split())


def test_help_shows_an_example_and_what_the_exit_status_means(owner: Client) -> None:
    ended = owner.run("push", "--help")

    assert ended.status == 0
    assert "python -m exporters.push our-lab/backbones" in ended.out
    assert "exit status: 0 " in ended.out


def test_control_c_ends_with_130(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "plan", interrupt)

    assert command.main([REPO, "--artifacts", str(store.root)]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was pushed; run the same command to go on\n"


def test_the_documentation_names_every_option() -> None:
    page = (ROOT / "docs" / "sharing.md").read_text()
    parsers = (command.parser_of_push(), parser_of_pull())
    options = {name for parser in parsers for action in parser._actions for name in action.option_strings}

    assert {name for name in options - {"-h", "--help"} if f"`{name}" not in page} == set()
