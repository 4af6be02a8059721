"""Weights from a hub: the real client against a server on this machine, and one clear line when they cannot be had."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_client import FILES, Fetch, client
from loopback import COMMIT, Answer, Loopback, files_under, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def online(server: Loopback, home: Path) -> Iterator[Fetch]:
    yield from client(home, HF_ENDPOINT=server.url)


@pytest.fixture(scope="module")
def offline(server: Loopback, home: Path) -> Iterator[Fetch]:
    yield from client(home, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def hasty(server: Loopback, home: Path) -> Iterator[Fetch]:
    """A client that waits half a second for a byte, not ten."""
    yield from client(home, HF_ENDPOINT=server.url, PATIENCE="0.5")


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
@pytest.mark.parametrize("status", [404, 401])
def test_a_repository_that_does_not_exist_or_hides(
    status: int, gated: bool, hint: str, server: Loopback, online: Fetch
) -> None:
    server.refuse("no/model", "model.safetensors", status, X_Error_Code="RepoNotFound")

    message = online("no/model", gated=gated)

    assert "no/model from the Hugging Face hub, which the hub does not show to you. " in message
    assert hint in message


def test_a_repository_without_any_of_the_files_names_them(server: Loopback, online: Fetch) -> None:
    for filename in FILES:
        server.refuse("bare/model", filename, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)

    assert "which has none of model.safetensors, pytorch_model.bin. See https://hugging" in online("bare/model")


@pytest.mark.parametrize(("revision", "named"), [(None, "main"), ("v9", "v9")])
def test_a_revision_that_does_not_exist_is_named(
    revision: str | None, named: str, server: Loopback, online: Fetch
) -> None:
    server.answers[f"/old/model/resolve/{named}/model.safetensors"] = Answer(
        status=404, headers={"X-Error-Code": "RevisionNotFound"}
    )

    assert online("old/model", revision=revision) == (
        f"test/model needs old/model from the Hugging Face hub, which has no revision {named}. "
        "See https://huggingface.co/old/model."
    )


@pytest.mark.parametrize(
    ("repo", "status", "headers", "words"),
    [
        (
            "forbidden/model",
            403,
            {"X_Error_Message": "your plan does not include this"},
            "your plan does not include this",
        ),
        ("token/model", 401, {"X_Error_Message": "Invalid credentials in Authorization header"}, "401"),
        ("disabled/model", 403, {"X_Error_Message": "Access to this resource is disabled."}, "403"),
    ],
)
def test_a_refusal_is_quoted_and_says_to_check_the_token(
    repo: str, status: int, headers: dict[str, str], words: str, server: Loopback, online: Fetch
) -> None:
    server.refuse(repo, "model.safetensors", status, **headers)

    message = online(repo)

    assert message.startswith(f"test/model needs {repo} from the Hugging Face hub, ")
    assert words in message
    assert f"See https://huggingface.co/{repo}, and check the token with `hf auth whoami`" in message


@pytest.mark.parametrize("status", [500, 503, 504])
def test_a_hub_in_trouble_for_a_moment_is_asked_again(status: int, server: Loopback, online: Fetch) -> None:
    repo = f"busy/model{status}"
    server.offer(repo, "model.safetensors", b"weights")
    path = f"/{repo}/resolve/main/model.safetensors"
    server.answers[f"HEAD {path}"] = [Answer(status=status), server.answers[path]]

    assert Path(online(repo)[0]).read_bytes() == b"weights"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_hub_in_trouble_for_good_says_so(method: str, server: Loopback, online: Fetch) -> None:
    repo = f"down/{method.lower()}"
    server.offer(repo, "model.safetensors", b"weights")
    server.answers[f"{method} /{repo}/resolve/main/model.safetensors"] = Answer(status=503)

    message = online(repo)

    assert f"test/model needs {repo} from the Hugging Face hub, " in message
    assert "503" in message
    assert message.endswith(". Try again later, or build with --weights random.")


def test_a_moved_repository_is_found_under_its_new_name(server: Loopback, online: Fetch) -> None:
    server.redirect("/old/name/resolve/main/model.safetensors", "/new/name/resolve/main/model.safetensors", 307)
    server.offer("new/name", "model.safetensors", b"weights")

    path, revision = online("old/name")

    assert (Path(path).read_bytes(), revision) == (b"weights", COMMIT)
    server.forget()
    assert online("old/name") == [path, COMMIT]
    assert server.requests == []


def test_a_large_file_comes_from_the_storage_that_the_hub_names(server: Loopback, home: Path) -> None:
    body = b"large" * 1000
    with serving() as storage:
        storage.answers["/blobs/1"] = Answer(body)
        server.redirect(
            "/large/model/resolve/main/model.safetensors",
            f"{storage.url}/blobs/1",
            X_Linked_ETag=f'"{hashlib.sha256(body).hexdigest()}"',
            X_Linked_Size=str(len(body)),
            X_Repo_Commit=COMMIT,
        )
        with_token = client(home, HF_ENDPOINT=server.url, HF_TOKEN="hf_secret")

        path, revision = next(with_token)("large/model")
        next(with_token, None)

        assert (Path(path).read_bytes(), revision) == (body, COMMIT)
        asked = dict(zip(server.requests, server.asked, strict=True))
        assert asked["HEAD /large/model/resolve/main/model.safetensors"]["authorization"] == "Bearer hf_secret"
        assert storage.requests == ["GET /blobs/1"]
        assert "authorization" not in storage.asked[0]


def test_content_that_is_not_what_the_hub_states_is_an_error_and_not_kept(
    server: Loopback, online: Fetch, home: Path
) -> None:
    stated, found = (hashlib.sha256(body).hexdigest() for body in (b"weights", b"wEights"))
    server.offer("altered/model", "model.safetensors", b"wEights", sha256=stated)

    message = online("altered/model")

    assert message == (
        f"test/model: model.safetensors of hf://altered/model has sha256 {found}, the hub states {stated}. "
        "It was altered on its way and is not kept: try again."
    )
    assert not [p for p in (home / "hub/models--altered--model").rglob("*") if p.name in (stated, "model.safetensors")]
    server.offer("altered/model", "model.safetensors", b"weights")
    assert Path(online("altered/model")[0]).read_bytes() == b"weights"


WHOLE = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("name", "break_", "sent_again"),
    [
        ("cut", {"sends": 4000}, len(WHOLE) - 4000),
        ("stalled", {"sends": 4000, "stalls": 2}, len(WHOLE) - 4000),
        ("unranged", {"sends": 4000}, len(WHOLE)),
    ],
)
def test_a_download_that_breaks_is_resumed_where_it_broke(
    name: str, break_: dict[str, Any], sent_again: int, server: Loopback, hasty: Fetch
) -> None:
    repo = f"resumed/{name}"
    server.offer_in_turn(repo, "model.safetensors", WHOLE, break_, {"ranges": name != "unranged"})

    path, revision = hasty(repo)

    assert (Path(path).read_bytes(), revision) == (WHOLE, COMMIT)
    assert [headers["range"] for headers in server.asked if "range" in headers] == ["bytes=4000-"]
    assert server.sent[-1] == sent_again


def test_a_hub_that_answers_late_is_asked_again(server: Loopback, hasty: Fetch) -> None:
    server.offer("late/model", "model.safetensors", b"weights")
    path = "/late/model/resolve/main/model.safetensors"
    server.answers[f"HEAD {path}"] = [replace(server.answers[path], delay=2), server.answers[path]]

    assert Path(hasty("late/model")[0]).read_bytes() == b"weights"


def test_a_hub_that_stalls_for_good_says_so_and_nothing_is_kept(server: Loopback, hasty: Fetch, home: Path) -> None:
    server.offer_in_turn("stuck/model", "model.safetensors", WHOLE, {"sends": 0, "stalls": 2})

    message = hasty("stuck/model")

    assert "but the download failed: " in message
    assert "timed out" in message
    assert files_under(home / "hub/models--stuck--model/blobs") == []


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "cut"])
def test_a_connection_that_breaks_leaves_nothing_to_be_served(
    reset: bool, server: Loopback, online: Fetch, home: Path
) -> None:
    repo = f"broken/{reset}"
    server.offer(repo, "model.safetensors", b"x" * 1000, sends=10 if reset else 0, reset=reset)

    assert "but the download failed: " in online(repo)

    assert files_under(home / f"hub/models--broken--{reset}/blobs") == []
    server.forget()
    server.offer(repo, "model.safetensors", b"whole")
    assert Path(online(repo)[0]).read_bytes() == b"whole"


def test_what_is_not_a_hub_says_so(server: Loopback, online: Fetch) -> None:
    server.answers["/plain/model/resolve/main/model.safetensors"] = Answer(b"<html>log in to this network")

    assert "does not seem to be served by a Hugging Face Hub endpoint" in online("plain/model")


def test_a_name_that_cannot_be_a_repository_is_an_error(online: Fetch) -> None:
    message = online("not/a/repository")

    assert message.startswith(
        "test/model needs 'not/a/repository' from the Hugging Face hub, which cannot be a repository: "
    )
    assert message.endswith("Repositories are named 'owner/name'.")


def test_a_hub_that_is_gone_says_so_but_the_cache_still_serves(server: Loopback, online: Fetch, home: Path) -> None:
    server.offer("cached/model", "model.safetensors", b"weights")
    cached = online("cached/model", gated=True)
    with serving() as gone:
        pass
    lonely = client(home, HF_ENDPOINT=gone.url)
    fetch = next(lonely)

    assert "the hub does not give it: [Errno" in fetch("gone/model")
    assert fetch("cached/model", gated=True) == cached
    next(lonely, None)


def test_an_interrupted_cache_is_mended_by_the_next_download(server: Loopback, online: Fetch) -> None:
    server.offer("mended/model", "model.safetensors", b"weights")
    path = Path(online("mended/model")[0])
    path.resolve().unlink()  # the link now leads nowhere

    assert online("mended/model") == [str(path), COMMIT]
    assert path.read_bytes() == b"weights"
