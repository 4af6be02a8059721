"""Weights from a hub: the real client against a server on this machine, and one clear line when they cannot be had."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import COMMIT, Loopback, serving

import runtime

FILES = ("model.safetensors", "pytorch_model.bin")
# The client reads its settings when it is imported, so it runs in a process of its own; it need not wait between tries.
CHILD = """
import json, sys, time
from runtime.download import fetch
from runtime.errors import WeightsError
from runtime.facts import HubFile

time.sleep = lambda seconds: None
for line in sys.stdin:
    repo, filenames, revision, gated = json.loads(line)
    try:
        answer = [str(part) for part in fetch(HubFile(repo, tuple(filenames), revision), "test/model", gated)]
    except WeightsError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""

Fetch = Callable[..., list[str] | str]


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


def client(home: Path, **settings: str) -> Iterator[Fetch]:
    """Give a function that fetches in a child; it returns path and revision, or the error's text."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    here = {"HF_HOME": str(home), "PYTHONPATH": str(Path(runtime.__file__).parent.parent), "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=clean | here | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def fetch(
            repo: str, filenames: tuple[str, ...] = FILES, revision: str | None = None, gated: bool = False
        ) -> list[str] | str:
            print(json.dumps([repo, filenames, revision, gated]), file=child.stdin, flush=True)
            answer: list[str] | str = json.loads(child.stdout.readline())
            return answer

        yield fetch
        child.stdin.close()


@pytest.fixture(scope="module")
def online(server: Loopback, home: Path) -> Iterator[Fetch]:
    yield from client(home, HF_ENDPOINT=server.url)


@pytest.fixture(scope="module")
def offline(server: Loopback, home: Path) -> Iterator[Fetch]:
    yield from client(home, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")


@pytest.fixture(autouse=True)
def forget(server: Loopback) -> None:
    server.forget()


def test_a_public_file_is_downloaded_and_its_revision_is_the_commit(server: Loopback, online: Fetch) -> None:
    server.offer("public/model", "model.safetensors", b"weights")

    path, revision = online("public/model")

    assert Path(path).read_bytes() == b"weights"
    assert Path(path).suffix == ".safetensors"
    assert revision == COMMIT


def test_a_named_revision_is_asked_for(server: Loopback, online: Fetch) -> None:
    server.offer("pinned/model", "model.safetensors", b"old", revision="v1")
    server.offer("pinned/model", "model.safetensors", b"new")

    path, revision = online("pinned/model", revision="v1")

    assert (Path(path).read_bytes(), revision) == (b"old", COMMIT)


def test_a_file_in_a_subfolder_has_its_commit_too(server: Loopback, online: Fetch) -> None:
    server.offer("nested/model", "weights/model.bin", b"weights")

    assert online("nested/model", filenames=("weights/model.bin",))[1] == COMMIT
    assert online("nested/model", filenames=("weights/model.bin",))[1] == COMMIT


def test_the_second_name_is_tried_when_the_first_does_not_exist(server: Loopback, online: Fetch) -> None:
    server.refuse("second/model", "model.safetensors", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
    server.offer("second/model", "pytorch_model.bin", b"pickle")

    path, revision = online("second/model")

    assert (Path(path).name, Path(path).read_bytes(), revision) == ("pytorch_model.bin", b"pickle", COMMIT)
    server.forget()
    assert online("second/model") == [path, COMMIT]
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_file_says_in_one_line_how_to_get_it(status: int, server: Loopback, online: Fetch) -> None:
    server.refuse(f"gated/model{status}", "model.safetensors", status, X_Error_Code="GatedRepo")

    assert online(f"gated/model{status}", gated=True) == (
        f"test/model needs gated/model{status} from the Hugging Face hub, which is gated. Accept its terms at "
        f"https://huggingface.co/gated/model{status}, then run `hf auth login` or set HF_TOKEN."
    )


def test_a_cached_file_needs_no_request_and_no_token(server: Loopback, online: Fetch, offline: Fetch) -> None:
    server.offer("later/gated", "model.safetensors", b"weights")
    cached = online("later/gated")
    server.forget()
    server.refuse("later/gated", "model.safetensors", 403, X_Error_Code="GatedRepo")

    assert online("later/gated", gated=True) == cached
    assert offline("later/gated", gated=True) == cached
    assert server.requests == []


def test_offline_a_missing_file_says_what_to_do(server: Loopback, offline: Fetch) -> None:
    server.offer("cold/model", "model.safetensors", b"weights")

    message = offline("cold/model")

    assert "test/model needs cold/model" in message
    assert "HF_HUB_OFFLINE" in message
    assert "Run `hf download cold/model` where there is a network, or build with --weights random." in message
    assert "\n" not in message
    assert server.requests == []


@pytest.mark.parametrize(
    ("gated", "hint"),
    [
        (False, "See https://huggingface.co/no/model; if it is private, then run `hf auth login`"),
        (True, "Accept its terms at https://huggingface.co/no/model, then run `hf auth login`"),
    ],
)
@pytest.mark.parametrize("code", ["RepoNotFound", "RevisionNotFound"])
def test_a_repository_that_does_not_exist_or_hides(
    code: str, gated: bool, hint: str, server: Loopback, online: Fetch
) -> None:
    server.refuse("no/model", "model.safetensors", 404, X_Error_Code=code)

    message = online("no/model", gated=gated)

    assert "no/model from the Hugging Face hub, which the hub does not show to you. " in message
    assert hint in message


def test_a_repository_without_any_of_the_files_names_them(server: Loopback, online: Fetch) -> None:
    for filename in FILES:
        server.refuse("bare/model", filename, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)

    assert "which has none of model.safetensors, pytorch_model.bin. See https://hugging" in online("bare/model")


def test_a_refusal_is_quoted(server: Loopback, online: Fetch) -> None:
    server.refuse("forbidden/model", "model.safetensors", 403, X_Error_Message="your plan does not include this")

    assert "the hub does not give it: 403 Forbidden: your plan does not include this." in online("forbidden/model")


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "cut"])
def test_a_connection_that_breaks_leaves_nothing_to_be_served(reset: bool, server: Loopback, online: Fetch) -> None:
    repo = f"broken/{reset}"
    server.offer(repo, "model.safetensors", b"x" * 1000, sends=10 if reset else 0, reset=reset)

    assert "but the download failed: " in online(repo)

    server.forget()
    server.offer(repo, "model.safetensors", b"whole")
    assert Path(online(repo)[0]).read_bytes() == b"whole"


def test_a_hub_that_is_gone_says_so(home: Path) -> None:
    with serving() as gone:
        pass
    lonely = client(home, HF_ENDPOINT=gone.url)

    assert "the hub does not give it: [Errno" in next(lonely)("gone/model")
    next(lonely, None)
