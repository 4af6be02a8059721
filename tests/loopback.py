"""A small HTTP server on this machine, which speaks as much of the Hugging Face hub's protocol as a download needs."""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Answer:
    """What is sent for a path: `sends` fewer bytes than announced breaks the connection, with `reset` rudely."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    sends: int | None = None
    reset: bool = False


class Loopback:
    """The running server.

    Attributes:
        url: Its address.
        answers: By path; any other path is a 404.
        requests: What was asked, such as `GET /file`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    def offer(self, repo: str, filename: str, body: bytes, revision: str = "main", **options: object) -> None:
        """Offer a file as the hub does."""
        headers = {"ETag": f'"{repo}-{filename}"'.replace("/", "-"), "X-Repo-Commit": COMMIT}
        self.answers[f"/{repo}/resolve/{revision}/{filename}"] = Answer(body, headers=headers, **options)  # type: ignore[arg-type]

    def refuse(self, repo: str, filename: str, status: int, **headers: str) -> None:
        """Answer with an error; `X_Error_Code="GatedRepo"` becomes the header X-Error-Code."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[f"/{repo}/resolve/main/{filename}"] = Answer(status=status, headers=named)

    def forget(self) -> None:
        """Go back to knowing nothing."""
        self.answers.clear()
        self.requests.clear()


@contextmanager
def serving() -> Iterator[Loopback]:
    """Run a server on a free port until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    loopback = Loopback(f"http://127.0.0.1:{server.server_port}")
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

    def _answer(self, with_body: bool) -> None:
        loopback: Loopback = self.server.loopback  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        loopback.requests.append(f"{self.command} {path}")
        answer = loopback.answers.get(path, Answer(status=404))
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body[: answer.sends])
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
