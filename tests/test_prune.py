"""`python -m exporters.prune`: what goes is a table; what is listed and current stays, whatever happens."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import NAME, load_from, published, republish
from terminal import run

from exporters import leftovers, prune
from exporters.leftovers import Shelf, decide
from runtime import publishing
from runtime.artifacts import DOWNLOADS, MANIFEST, Store
from runtime.manifest import RECIPE, Artifact, ArtifactKey, Form, Manifest, StoredFile

NOW, OLD = str(RECIPE), str(RECIPE - 1)
CPU, CUDA, SCRIPT = (
    "embedding.cpu.fp32.0123456789ab.onnx",
    "embedding.cuda.fp16.0123456789ab.onnx",
    "embedding.fp32.0123456789ab.torchscript",
)
SHARED, OWN = "weights.0123456789ab.data", "weights.ba9876543210.data"


def artifact(graph: str, *weights: str, recipe: str | None = NOW) -> Artifact:
    form = Form(graph.rpartition(".")[2], "cuda" if ".cuda." in graph else "cpu", graph.split(".")[-3])
    key = ArtifactKey(None, form.format, form.target, form.precision, (32, 32), (), "pretrained")
    files = tuple(StoredFile(name, 1, "") for name in (graph, *weights))
    return Artifact(key, files, (), (), {"versions": {"recipe": recipe} if recipe else {}})


def files(*names: str) -> dict[str, int]:
    return {name: 10 * (index + 1) for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("artifacts", "there", "facts", "named", "gone"),
    [
        # All listed, all current.
        ([artifact(CPU, SHARED), artifact(CUDA, SHARED)], files(CPU, CUDA, SHARED), {}, (), {}),
        # Weights that nothing reads, and what was left half written; a stranger stays.
        (
            [artifact(CPU, SHARED)],
            files(CPU, SHARED, OWN, OWN + ".part", "notes.txt"),
            {},
            (),
            dict.fromkeys([OWN, OWN + ".part"], "listed by no manifest"),
        ),
        # Another recipe made one; what it alone read goes with it, what others read stays.
        (
            [artifact(CPU, SHARED), artifact(CUDA, SHARED, OWN, recipe=OLD)],
            files(CPU, CUDA, SHARED, OWN),
            {},
            (),
            {CUDA: f"made by recipe {OLD}, this release has {NOW}", OWN: "read by nothing that stays"},
        ),
        ([artifact(CPU, recipe=None)], files(CPU), {}, (), {CPU: f"made by recipe unknown, this release has {NOW}"}),
        # Named: current ones, too, but no others.
        ([artifact(CPU), artifact(CUDA)], files(CPU, CUDA), {}, ("*.cuda.*",), {CUDA: "named by --remove"}),
        ([artifact(CPU), artifact(SCRIPT)], files(CPU, SCRIPT), {}, (CPU,), {CPU: "named by --remove"}),
        # No manifest: only what a build writes is taken for a leftover.
        (
            [],
            files(CPU, SHARED, SHARED + ".part", "manifest.json.part", "notes.txt", "model.onnx", "weights.data"),
            {},
            (),
            dict.fromkeys([CPU, SHARED, SHARED + ".part", "manifest.json.part"], "listed by no manifest"),
        ),
        # Where there is one, a stranger stays, too.
        ([artifact(CPU)], files(CPU, OWN, "pytorch_model.bin"), {}, (), {OWN: "listed by no manifest"}),
        # A killed build's staging folder.
        ([artifact(CPU)], files(CPU), {"staged": 7}, (), {"": "a build was killed"}),
        # What a pull fetched that was never run again.
        ([artifact(CPU)], files(CPU), {"fetched": 9}, (), {DOWNLOADS: "a pull was given up; it would go on from here"}),
        # Where a build or a pull is going on, all stays.
        ([artifact(CPU)], files(CPU, OWN), {"fetched": 9, "busy": True}, ("*",), {}),
        ([artifact(CPU, recipe=OLD)], files(CPU, OWN), {"staged": 7, "busy": True}, ("*",), {}),
        # Listed and damaged: a rebuild mends it, nothing else goes.
        ([artifact(CPU, SHARED)], files(SHARED), {}, (), {}),
    ],
)
def test_what_can_go_is_a_table(
    artifacts: list[Artifact],
    there: dict[str, int],
    facts: dict[str, Any],
    named: tuple[str, ...],
    gone: dict[str, str],
) -> None:
    decided = decide(Shelf(Manifest("a/b", tuple(artifacts)), there, **facts), named)

    assert {removal.name: removal.reason for removal in decided.removals} == gone
    assert {a.graph.name for a in decided.artifacts} == {a.graph.name for a in artifacts} & set(gone)
    sizes = {**there, "": facts.get("staged"), DOWNLOADS: facts.get("fetched")}
    assert all(removal.bytes == sizes[removal.name] for removal in decided.removals)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(built, tmp_path / "store"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


def age(store: Store, format: str) -> Artifact:
    """Let another recipe have made the embedding in this format."""
    old = published(store, format)
    new = replace(old, facts={**old.facts, "versions": {**old.facts["versions"], "recipe": OLD}})
    republish(store, old, new)
    return new


def test_a_clean_store_is_left_as_it_is(store: Store) -> None:
    before = contents(store.root)

    ran = run(prune.main, "--artifacts", store.root, "--yes")

    assert (ran.status, ran.out) == (0, "Nothing can go.\n")
    assert contents(store.root) == before


def test_outdated_artifacts_and_leftovers_go_and_the_rest_is_served(store: Store) -> None:
    before = contents(store.root)
    outdated = age(store, "torchscript")
    orphan = store.folder(NAME) / OWN
    orphan.write_bytes(b"12345")
    staged = store.root / ".staging/test--tiny_vit/test/tiny_vit/graph.part"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"123")

    ran = run(prune.main, "--artifacts", store.root, "--yes", "--json")

    assert ran.status == 0, ran.err
    assert all(line["removed"] and line["model"] == NAME for line in ran.lines)
    gone = {line["name"]: line["bytes"] for line in ran.lines}
    kept = {file.name for a in store.read(NAME).artifacts for file in a.files}
    unread = {file.name: file.bytes for file in outdated.files if file.name not in kept}
    assert outdated.graph.name in unread
    assert gone == {OWN: 5, "": 3, **unread}
    after = contents(store.root)
    assert not orphan.exists()
    assert not (store.root / ".staging/test--tiny_vit").exists()
    assert set(before) - set(after) == {f"{NAME}/{name}" for name in unread}
    assert {name: after[name] == before[name] for name in after if not name.endswith(MANIFEST)} == dict.fromkeys(
        [name for name in after if not name.endswith(MANIFEST)], True
    )
    assert len(store.read(NAME).artifacts) == 3
    load_from(store, "onnx", verify="full").close()
    load_from(store, "torchscript", out_indices=2, verify="full").close()


@pytest.mark.parametrize("model", [NAME, "never/published"])
def test_what_an_abandoned_pull_left_goes_unless_it_is_going_on(model: str, store: Store) -> None:
    before = contents(store.root)
    fetched = publishing.downloads_of(store, model) / "our-lab--backbones" / model / "graph.onnx"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"1234")

    with publishing.lock_of(store, model):
        during = run(prune.main, "--artifacts", store.root, "--yes")
    stayed = fetched.exists()
    after = run(prune.main, model, "--artifacts", store.root, "--yes")

    assert (stayed, during.out) == (True, "Nothing can go.\n")
    assert f"{model} is being built or pulled now: left alone" in during.err
    assert after.status == 0
    assert f"{model}" + "  unfinished pull  4 B   a pull was given up; it would go on from here" in after.out
    assert contents(store.root) == before
    assert not (store.root / DOWNLOADS).exists()


def test_a_dry_run_shows_it_and_removes_nothing(store: Store) -> None:
    graph = age(store, "onnx").graph
    before = contents(store.root)

    ran = run(prune.main, "--artifacts", store.root, "--dry-run")

    assert ran.status == 0
    assert contents(store.root) == before
    assert f"made by recipe {OLD}, this release has {NOW}" in ran.out
    kilobytes = f"{graph.bytes / 1e3:,.1f} kB"
    assert ran.out.splitlines()[-1] == f"{kilobytes} would be freed; nothing was removed."


def test_nobody_to_ask_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    age(store, "onnx")
    before = contents(store.root)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    ran = run(prune.main, "--artifacts", store.root)

    assert ran.status == 2
    assert "give --yes to remove it, or --dry-run" in ran.err
    assert contents(store.root) == before


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("", False)])
def test_who_is_asked_decides(answer: str, goes: bool, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = age(store, "onnx").graph.name
    monkeypatch.setattr("sys.stdin", Asked(answer))

    ran = run(prune.main, "--artifacts", store.root)

    assert ran.status == 0
    assert "Remove 1 files, " in ran.err
    assert (store.folder(NAME) / graph).exists() != goes
    assert ran.out.splitlines()[-1].endswith(" freed.")


class Asked:
    """A terminal at which somebody types."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answer


def test_current_artifacts_go_only_if_they_are_named(store: Store) -> None:
    graph = published(store, "onnx").graph.name

    ran = run(prune.main, NAME, "--artifacts", store.root, "--remove", graph, "--yes")

    assert ran.status == 0
    assert len(store.read(NAME).artifacts) == 3
    assert not (store.folder(NAME) / graph).exists()
    assert "named by --remove" in ran.out


def test_a_model_of_which_nothing_stays_leaves_no_folder(store: Store) -> None:
    ran = run(prune.main, NAME, "--artifacts", store.root, "--remove", "*", "--yes")

    assert ran.status == 0
    assert contents(store.root) == {}
    assert not store.folder(NAME).exists()
    assert store.models() == []


def test_what_was_left_without_a_manifest_goes_and_strangers_stay(tmp_path: Path) -> None:
    folder = tmp_path / "test/killed"
    folder.mkdir(parents=True)
    for name in (CPU, SHARED, "notes.txt"):
        (folder / name).write_text("x")
    (tmp_path / "README.md").write_text("x")

    ran = run(prune.main, "--artifacts", tmp_path, "--yes")

    assert ran.status == 0
    assert set(contents(tmp_path)) == {"README.md", "test/killed/notes.txt"}


def test_a_lock_that_cannot_be_opened_stops_no_dry_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    age(store, "torchscript")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with publishing.lock_of(store, NAME):
        pass
    monkeypatch.setattr(publishing.FileLock, "acquire", refuse)

    ran = run(prune.main, "--artifacts", store.root, "--dry-run")

    assert ran.status == 0, ran.err
    assert f"made by recipe {OLD}" in ran.out


def test_while_a_build_holds_the_lock_all_stays(store: Store) -> None:
    age(store, "onnx")
    before = contents(store.root)

    with publishing.lock_of(store, NAME):
        ran = run(prune.main, "--artifacts", store.root, "--yes")

    assert ran.status == 0
    assert f"{NAME} is being built or pulled now: left alone" in ran.err
    assert contents(store.root) == before


def start_a_build(store: Store) -> Any:
    return publishing.lock_of(store, NAME).acquire()


def publish_another(store: Store) -> None:
    republish(store, published(store, "onnx"))


@pytest.mark.parametrize(
    ("meanwhile", "says"),
    [
        (start_a_build, "is being built or pulled now: nothing of it was removed"),
        (publish_another, "has changed meanwhile"),
    ],
)
def test_what_changes_after_it_was_shown_stays(
    meanwhile: Callable[[Store], Any], says: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(store, "torchscript")
    remove, held = leftovers.remove, []

    def late(*what: Any) -> None:
        held.append(meanwhile(store))
        remove(*what)

    monkeypatch.setattr(prune, "remove", late)
    graphs = {path.name for path in store.folder(NAME).iterdir()}

    ran = run(prune.main, "--artifacts", store.root, "--yes", "--json")

    assert ran.status == 1
    assert says in ran.err
    assert [line["removed"] for line in ran.lines] == [False] * len(ran.lines)
    assert {path.name for path in store.folder(NAME).iterdir()} == graphs


def test_what_stops_in_the_middle_serves_what_stays_and_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = age(store, "torchscript").graph.name

    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", fail)
        first = run(prune.main, "--artifacts", store.root, "--yes")
    assert (store.folder(NAME) / graph).exists()
    load_from(store, "onnx", verify="full").close()
    second = run(prune.main, "--artifacts", store.root, "--yes", "--json")

    assert first.status == 1
    assert f"{store.root} cannot be written: Read-only file system" in first.err
    assert first.out.splitlines()[-1] == "0 B freed."
    assert second.status == 0
    assert graph in {line["name"] for line in second.lines}
    assert not (store.folder(NAME) / graph).exists()


def test_a_manifest_that_cannot_be_used_keeps_its_files(store: Store) -> None:
    (store.folder(NAME) / MANIFEST).write_text("{")
    before = contents(store.root)

    ran = run(prune.main, "--artifacts", store.root, "--yes")

    assert ran.status == 1
    assert "is not a valid manifest" in ran.err
    assert contents(store.root) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/*"], "has nothing of 'no/*'. It has: test/tiny_vit"),
        (["--remove", "*.fp64.*"], "--remove '*.fp64.*' is no graph of these models"),
    ],
)
def test_names_that_match_nothing_are_wrong_usage(arguments: list[str], says: str, built: Path) -> None:
    ran = run(prune.main, *arguments, "--artifacts", built, "--yes")

    assert ran.status == 2
    assert says in ran.err
