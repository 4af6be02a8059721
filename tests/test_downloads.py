"""Weights at a URL: whole, checked and under a name of their own, or one clear line and nothing kept."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Answer, Loopback, files_under, serving

from runtime import download
from runtime.download import cache_name, fetch
from runtime.errors import WeightsError
from runtime.facts import Url

BODY = b"published weights"
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
OTHER = hashlib.sha256(b"other weights").hexdigest()


@pytest.fixture(scope="module")
def running() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback


@pytest.fixture
def server(running: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A server that knows nothing yet, and an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.forget()
    return running


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "cache/hub/checkpoints"


@pytest.mark.parametrize(
    "stated",
    [{}, {"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5}],
    ids=lambda s: "+".join(s) or "none",
)
def test_a_file_is_kept_and_its_revision_is_its_hash(
    stated: dict[str, str], server: Loopback, checkpoints: Path
) -> None:
    server.answers["/tiny.pth"] = Answer(BODY)

    path, revision = fetch(Url(f"{server.url}/tiny.pth", **stated), "my/model", gated=False)

    assert (path, path.read_bytes()) == (checkpoints / cache_name(f"{server.url}/tiny.pth"), BODY)
    assert revision == f"sha256:{SHA256}"
    assert files_under(checkpoints) == [path.name]


def test_a_file_in_the_cache_is_used_without_a_request(server: Loopback) -> None:
    server.answers["/tiny.pth"] = Answer(BODY)
    source = Url(f"{server.url}/tiny.pth", sha256=SHA256)

    first = fetch(source, "my/model", gated=False)
    server.forget()

    assert fetch(source, "my/model", gated=False) == first
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "stem", "suffix"),
    [
        ("https://a.org/releases/1.0/vits16.pth", "vits16", ".pth"),
        ("https://zenodo.org/records/1/files/model.safetensors?download=1", "model", ".safetensors"),
        ("https://a.org/get?id=7", "get", ""),
    ],
)
def test_a_cached_file_keeps_the_kind_that_its_url_tells(url: str, stem: str, suffix: str) -> None:
    assert cache_name(url).startswith(f"{stem}-")
    assert Path(cache_name(url)).suffix == suffix


def test_two_urls_that_end_alike_do_not_share_a_file(server: Loopback, checkpoints: Path) -> None:
    server.answers["/one/model.pth"] = Answer(BODY)
    server.answers["/two/model.pth"] = Answer(b"other weights")

    one, _ = fetch(Url(f"{server.url}/one/model.pth"), "my/one", gated=False)
    two, revision = fetch(Url(f"{server.url}/two/model.pth"), "my/two", gated=False)

    assert (one.read_bytes(), two.read_bytes(), revision) == (BODY, b"other weights", f"sha256:{OTHER}")
    assert len(files_under(checkpoints)) == 2


@pytest.fixture
def from_torch_hub(server: Loopback, checkpoints: Path) -> Path:
    """The file where torch.hub itself puts it: under the last part of its URL."""
    server.answers["/release/tiny.pth"] = Answer(BODY)
    checkpoints.mkdir(parents=True)
    torch.hub.download_url_to_file(f"{server.url}/release/tiny.pth", str(checkpoints / "tiny.pth"), progress=False)
    server.forget()
    return checkpoints / "tiny.pth"


@pytest.mark.parametrize(
    "stated", [{"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5}], ids=lambda s: "+".join(s)
)
def test_a_file_that_torch_hub_downloaded_is_used_when_its_checksum_proves_it(
    stated: dict[str, str], server: Loopback, from_torch_hub: Path
) -> None:
    source = Url(f"{server.url}/release/tiny.pth", **stated)

    assert fetch(source, "my/model", gated=False) == (from_torch_hub, f"sha256:{SHA256}")
    assert server.requests == []


@pytest.mark.parametrize("stated", [{}, {"sha256": OTHER}], ids=["no checksum", "another file's"])
def test_a_file_of_the_same_name_that_nothing_proves_is_left_alone(
    stated: dict[str, str], server: Loopback, from_torch_hub: Path
) -> None:
    source = Url(f"{server.url}/elsewhere/tiny.pth", **stated)

    with pytest.raises(WeightsError) as caught:
        fetch(source, "my/model", gated=False)
    assert f" {from_torch_hub} is not used: nothing proves that it is this file." in str(caught.value)

    server.answers["/elsewhere/tiny.pth"] = Answer(b"other weights")
    path, revision = fetch(source, "my/model", gated=False)
    assert (path.read_bytes(), revision) == (b"other weights", f"sha256:{OTHER}")
    assert from_torch_hub.read_bytes() == BODY


@pytest.mark.parametrize(("kind", "found"), [("sha256", SHA256), ("md5", MD5)])
def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(
    kind: str, found: str, server: Loopback, checkpoints: Path
) -> None:
    server.answers["/tiny.pth"] = Answer(BODY)

    with pytest.raises(WeightsError, match=f"my/model: tiny-.*{kind} {found}, its publisher states 00ff"):
        fetch(Url(f"{server.url}/tiny.pth", **{kind: "00ff"}), "my/model", gated=False)

    assert list(checkpoints.iterdir()) == []


def test_an_altered_file_in_the_cache_is_an_error(server: Loopback) -> None:
    server.answers["/tiny.pth"] = Answer(BODY)
    source = Url(f"{server.url}/tiny.pth", md5=MD5)
    path, _ = fetch(source, "my/model", gated=False)
    path.write_bytes(BODY[:-1])

    with pytest.raises(WeightsError, match=f"cut or altered: delete {path} if it is there"):
        fetch(source, "my/model", gated=False)


AGAIN = "Check the network and try again"
MOVED = "See where its publisher has moved it"


@pytest.mark.parametrize(
    ("answer", "words", "advice"),
    [
        (Answer(BODY, sends=5), f"the connection broke after 5 of {len(BODY)} bytes", AGAIN),
        (Answer(BODY, sends=5, reset=True), "Connection reset by peer", AGAIN),
        (Answer(BODY, stalls=3, sends=5), "timed out", AGAIN),
        (Answer(b"400\r\ncut", headers={"Transfer-Encoding": "chunked"}), "IncompleteRead(", AGAIN),
        (Answer(status=404), "HTTP Error 404: Not Found", MOVED),
        (Answer(status=410), "HTTP Error 410: Gone", MOVED),
        (Answer(status=401), "HTTP Error 401: Unauthorized", MOVED),
        (Answer(status=403), "HTTP Error 403: Forbidden", MOVED),
        (Answer(status=429), "HTTP Error 429: Too Many Requests", AGAIN),
        (Answer(status=500), "HTTP Error 500", AGAIN),
        (Answer(status=503), "HTTP Error 503", AGAIN),
        (Answer(status=302, headers={"Location": "/tiny.pth"}), "would lead to an infinite loop", MOVED),
        (Answer(status=302, headers={"Location": "file:///etc/passwd"}), "is not allowed", MOVED),
        (
            Answer(b"<html>log in", headers={"Content-Type": "text/html; charset=utf-8"}),
            "the server sent a web page instead of the file",
            AGAIN,
        ),
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Answer) else None,
)
def test_a_failed_download_keeps_nothing_and_says_why(
    answer: Answer, words: str, advice: str, server: Loopback, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.answers["/tiny.pth"] = answer

    with pytest.raises(WeightsError) as caught:
        fetch(Url(f"{server.url}/tiny.pth"), "my/model", gated=False)

    message = str(caught.value)
    assert f"my/model needs {server.url}/tiny.pth, which could not be downloaded: " in message
    assert words in message
    place = checkpoints / cache_name(f"{server.url}/tiny.pth")
    assert message.endswith(f"{advice}, or put the file at {place}, or build with --weights random.")
    assert "\n" not in message
    assert list(checkpoints.iterdir()) == []


def test_after_a_failure_the_next_try_downloads_the_whole_file(server: Loopback) -> None:
    source = Url(f"{server.url}/tiny.pth")
    server.answers["/tiny.pth"] = [Answer(BODY, sends=5), Answer(status=503), Answer(BODY)]

    for _ in range(2):
        with pytest.raises(WeightsError):
            fetch(source, "my/model", gated=False)

    assert fetch(source, "my/model", gated=False)[0].read_bytes() == BODY
    assert server.requests == ["GET /tiny.pth"] * 3


def test_the_file_put_where_the_error_says_is_used(server: Loopback) -> None:
    source = Url(f"{server.url}/tiny.pth")
    with pytest.raises(WeightsError) as caught:
        fetch(source, "my/model", gated=False)

    place = Path(str(caught.value).partition("put the file at ")[2].partition(", or")[0])
    place.write_bytes(BODY)

    assert fetch(source, "my/model", gated=False) == (place, f"sha256:{SHA256}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_followed(
    status: int, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serving() as storage:
        server.redirect("/release/tiny.pth", "/moved/tiny.pth", status)
        server.redirect("/moved/tiny.pth", f"{storage.url}/blob/1234?signature=x", status)
        storage.answers["/blob/1234"] = Answer(BODY)

        path, revision = fetch(Url(f"{server.url}/release/tiny.pth", sha256=SHA256), "my/model", gated=False)

        assert storage.requests == ["GET /blob/1234"]
        assert not any("authorization" in headers for headers in [*server.asked, *storage.asked])
    assert (path.name, revision) == (cache_name(f"{server.url}/release/tiny.pth"), f"sha256:{SHA256}")


def test_a_server_that_is_gone_is_an_error(server: Loopback) -> None:
    with serving() as gone:
        pass

    with pytest.raises(WeightsError, match=r"could not be downloaded: .*refused"):
        fetch(Url(f"{gone.url}/tiny.pth"), "my/model", gated=False)


@pytest.mark.parametrize("url", ["tiny.pth", "http://", "http://127.0.0.1:port/tiny.pth", "gopher://a.org/tiny.pth"])
def test_a_url_that_is_none_is_an_error(url: str, server: Loopback) -> None:
    with pytest.raises(WeightsError, match=f"my/model needs {url}, which could not be downloaded: "):
        fetch(Url(url), "my/model", gated=False)


def test_a_cache_that_is_a_file_is_an_error(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")

    with pytest.raises(WeightsError, match=r"could not be downloaded: .*Not a directory"):
        fetch(Url(f"{server.url}/tiny.pth"), "my/model", gated=False)


def test_several_at_once_get_the_same_whole_file(server: Loopback, checkpoints: Path) -> None:
    body = BODY * 100_000
    server.answers["/tiny.pth"] = Answer(body, sends=1000, stalls=0.2)
    source = Url(f"{server.url}/tiny.pth", sha256=hashlib.sha256(body).hexdigest())
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(fetch(source, "my/model", gated=False))) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert got == [(checkpoints / cache_name(source.url), f"sha256:{source.sha256}")] * 4
    assert server.requests == ["GET /tiny.pth"] * 4  # they did race
    assert [path.name for path in checkpoints.iterdir()] == [cache_name(source.url)]
    assert got[0][0].read_bytes() == body
