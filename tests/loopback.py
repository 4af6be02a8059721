"""A small HTTP server on this machine, which speaks as much of the Hugging Face hub's protocol as a download needs."""

import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Answer:
    """What is sent for a path.

    `sends` bytes and no more break the connection, with `reset` rudely; `stalls` seconds pass before the rest is sent,
    `delay` seconds before anything is.
    A request for a range of a good answer gets that range, unless `ranges` is off.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    sends: int | None = None
    reset: bool = False
    stalls: float = 0
    delay: float = 0
    ranges: bool = True


@dataclass(frozen=True)
class Asked:
    """A request: its path without the query, the names of its headers in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Loopback:
    """The running server.

    Attributes:
        url: Its address.
        answers: By path, or by `HEAD /path` or `GET /path`; any other path is a 404. Of a list the first is sent first
            and the last from then on.
        requests: What was asked, such as `GET /file`.
        asked: The headers of each request, their names in lower case.
        sent: How many bytes each answer announced.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.requests: list[str] = []
        self.asked: list[Mapping[str, str]] = []
        self.sent: list[int] = []

    def offer(
        self,
        repo: str,
        filename: str,
        body: bytes,
        revision: str = "main",
        *,
        sha256: str | None = None,
        **options: Any,
    ) -> None:
        """Offer a large file as the hub does: its ETag is its SHA-256, or what is said to be."""
        path = f"/{repo}/resolve/{revision}/{filename}"
        self.answers[path] = Answer(body, headers=hub_headers(body, sha256), **options)

    def offer_in_turn(self, repo: str, filename: str, body: bytes, *turns: Mapping[str, Any]) -> None:
        """Offer a file that each GET gets in another way."""
        path, headers = f"/{repo}/resolve/main/{filename}", hub_headers(body)
        self.answers[f"HEAD {path}"] = Answer(body, headers=headers)
        self.answers[f"GET {path}"] = [Answer(**{"body": body, "headers": headers, **turn}) for turn in turns]

    def refuse(self, repo: str, filename: str, status: int, **headers: str) -> None:
        """Answer with an error; `X_Error_Code="GatedRepo"` becomes the header X-Error-Code."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[f"/{repo}/resolve/main/{filename}"] = Answer(status=status, headers=named)

    def redirect(self, path: str, location: str, status: int = 302, **headers: str) -> None:
        """Send whoever asks for `path` elsewhere; headers are spelt as in `refuse`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = Answer(status=status, headers={"Location": location, **named})

    def reply(self, asked: Asked) -> Answer:
        """Return what is due to a request."""
        return self.answer(asked.method, asked.path)

    def answer(self, method: str, path: str) -> Answer:
        """Return what was said to be the answer."""
        due = self.answers.get(f"{method} {path}", self.answers.get(path, Answer(status=404)))
        if isinstance(due, Answer):
            return due
        return due.pop(0) if len(due) > 1 else due[0]

    def forget(self) -> None:
        """Go back to knowing nothing."""
        self.answers.clear()
        self.requests.clear()
        self.asked.clear()
        self.sent.clear()


def hub_headers(body: bytes, sha256: str | None = None) -> dict[str, str]:
    """Return what the hub says of a large file."""
    return {"ETag": f'"{sha256 or hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}


@contextmanager
def serving(make: Callable[[str], Any] = Loopback) -> Iterator[Any]:
    """Run a server on a free port until the end of the block; `make` is given its address and returns what replies."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True  # nobody waits for a stalled answer at the end
    loopback = make(f"http://127.0.0.1:{server.server_port}")
    server.loopback = loopback  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield loopback
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self._answer(with_body=True)

    def do_PUT(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        loopback = self.server.loopback  # type: ignore[attr-defined]
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, path, query, headers, self._read_body(headers))
        loopback.requests.append(f"{self.command} {path}")
        loopback.asked.append(headers)
        answer = loopback.reply(asked)
        time.sleep(answer.delay)
        with suppress(ConnectionError):  # the client may have lost patience
            body = self._send_head(answer)
            loopback.sent.append(len(body))
            if with_body:
                self._send_body(answer, body)

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send_head(self, answer: Answer) -> bytes:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if answer.status == 200 and answer.ranges and asked:
            start, whole = int(asked[1]), len(answer.body)
            body, status, range_ = answer.body[start:], 206, {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        else:
            body, status, range_ = answer.body, answer.status, {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **range_, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        return body

    def _send_body(self, answer: Answer, body: bytes) -> None:
        self.wfile.write(body[: answer.sends])
        if answer.stalls:
            time.sleep(answer.stalls)
            self.wfile.write(body[len(body[: answer.sends]) :])
        if answer.reset:
            self._reset()

    def _reset(self) -> None:
        self.rfile.close()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def files_under(folder: Path) -> list[str]:
    """Return the names of all files under a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
