"""A small Hugging Face hub on this machine: it keeps repositories, takes commits and gives files, as its client asks.

What it answers is what the client relies on, no more: repositories with branches, tags and pull requests; commits of
small files and of large ones (stored first, by their SHA-256); private and gated repositories; cards that are valid.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml
from loopback import Answer, Asked, Loopback

TOKEN = "hf_owner"
# Of somebody who may read what is public, and open pull requests.
GUEST = "hf_guest"
_LARGE = (".onnx", ".data", ".torchscript", ".pt2")
_LICENCES = ("apache-2.0", "mit", "cc-by-nc-nd-4.0", "other")
Files = dict[str, bytes]


@dataclass
class Repository:
    """One repository.

    Attributes:
        refs: The commit of each branch, tag and pull request.
        commits: What each holds.
        messages: The first line of each commit's message.
    """

    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, ref: str = "main", message: str = "by hand") -> str:
        """Add a commit that holds `files` and let `ref` point to it; return its name."""
        text = json.dumps([ref, message, len(self.commits), {n: sha256(b) for n, b in sorted(files.items())}])
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.messages[name], self.refs[ref] = dict(files), message, name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, tag or commit names."""
        return self.refs.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> Files:
        """What the main branch holds."""
        return self.commits[self.refs["main"]]


class Hub:
    """The running hub; it speaks as much of the protocol as `serving(Hub)` needs.

    Attributes:
        url: Its address.
        repositories: By name.
        stored: Large files that were uploaded, by SHA-256.
        part_size: Bytes of one part of an upload; `None` takes every file at once.
        said: Answers given instead of its own, as `Loopback.answers`.
        meanwhile: Called once, when the next push asks how to send its files.
        requests, asked, sent: As of a `Loopback`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.part_size: int | None = None
        self.meanwhile: Callable[[], object] | None = None
        self.said = Loopback(url)
        self.requests: list[str] = []
        self.asked: list[Mapping[str, str]] = []
        self.sent: list[int] = []

    def forget(self) -> None:
        """Go back to holding nothing."""
        for memory in (self.repositories, self.stored, self.parts, self.requests, self.asked, self.sent):
            memory.clear()
        self.said.forget()
        self.part_size = self.meanwhile = None

    def hold(self, name: str, files: Files | None = None, **kind: bool) -> Repository:
        """Make a repository with one commit."""
        self.repositories[name] = Repository(**kind)
        self.repositories[name].commit({".gitattributes": b""} | (files or {}), message="initial commit")
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """Return the names of the files that were asked for, manifests and cards aside."""
        names = [r.rpartition("/")[2] for r in self.requests if r.startswith("GET") and "/resolve/" in r]
        return [name for name in names if name not in ("manifest.json", "README.md")]

    def written(self) -> list[str]:
        """Return the requests that wrote something."""
        return [r for r in self.requests if r.startswith(("POST", "PUT")) and "validate-yaml" not in r]

    def reply(self, asked: Asked) -> Answer:
        """Return what is due to a request."""
        if {asked.path, f"{asked.method} {asked.path}"} & set(self.said.answers):
            return self.said.reply(asked)
        for method, pattern, handler in self._routes:
            if method == asked.method and (match := re.fullmatch(pattern, asked.path)):
                return handler(self, asked, *map(unquote, match.groups()))
        return error(404, "no such page")

    def _seen(self, name: str, asked: Asked) -> Repository | None:
        """Return a repository that whoever asks may see."""
        found = self.repositories.get(name)
        return None if found is None or (found.private and not may_write(asked)) else found

    def _info(self, asked: Asked, name: str, revision: str = "main") -> Answer:
        if (repo := self._seen(name, asked)) is None:
            return error(404 if may_write(asked) else 401, "Repository not found", "RepoNotFound")
        if (commit := repo.resolve(revision)) is None:
            return error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [listed(path, body) for path, body in sorted(repo.commits[commit].items())]
        return as_json(id=name, sha=commit, private=repo.private, gated=repo.gated, tags=[], siblings=siblings)

    def _info_at(self, asked: Asked, name: str, revision: str) -> Answer:
        return self._info(asked, name, revision)

    def _resolve(self, asked: Asked, name: str, revision: str, path: str) -> Answer:
        if (repo := self._seen(name, asked)) is None:
            return error(404 if may_write(asked) else 401, "Repository not found", "RepoNotFound")
        if repo.gated and not may_write(asked):
            return error(403, "Access to this model is restricted", "GatedRepo")
        if (commit := repo.resolve(revision)) is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        if path not in repo.commits[commit]:
            return error(404, "Entry not found", "EntryNotFound")
        body = repo.commits[commit][path]
        return Answer(body, headers={"ETag": f'"{oid(path, body)}"', "X-Repo-Commit": commit})

    def _create(self, asked: Asked) -> Answer:
        wanted = json.loads(asked.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not may_write(asked):
            return error(401, "Invalid username or password.")
        if name in self.repositories:
            return error(409, "You already created this model repo")
        self.hold(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return as_json(url=f"{self.url}/{name}", name=name)

    def _validate(self, asked: Asked) -> Answer:
        content = json.loads(asked.body)["content"]
        head = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
        facts = yaml.safe_load(head[1]) if head else {}
        licence = facts.get("license", "other")
        errors = [] if licence in _LICENCES else [{"message": f'"license" must be one of {_LICENCES}'}]
        return as_json(200 if not errors else 400, errors=errors, warnings=[])

    def _branch(self, asked: Asked, name: str, branch: str) -> Answer:
        repo = self.repositories[name]
        if not may_write(asked):
            return error(403, "You have no right to do that")
        if branch in repo.refs:
            return error(409, "Reference already exists")
        start = json.loads(asked.body or b"{}").get("startingPoint", "main")
        repo.refs[branch] = str(repo.resolve(start))
        return as_json(201)

    def _preupload(self, asked: Asked, name: str, revision: str) -> Answer:
        if not may_commit(asked):
            return error(403, "You have no right to do that")
        if (commit := self.repositories[name].resolve(revision)) is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        if self.meanwhile is not None:
            self.meanwhile, call = None, self.meanwhile
            call()
        held, told = self.repositories[name].commits[commit], []
        for file in json.loads(asked.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(_LARGE) else "regular"
            there = {"oid": oid(path, held[path])} if path in held else {}
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        return as_json(files=told)

    def _batch(self, asked: Asked, name: str) -> Answer:  # noqa: ARG002
        objects = json.loads(asked.body)["objects"]
        return as_json(transfer="basic", objects=[self._action(wanted) for wanted in objects])

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.stored:
            return wanted
        where = f"{self.url}/storage/{wanted['oid']}"
        upload: dict[str, Any] = {"href": where}
        if self.part_size:
            numbers = range(1, -(-wanted["size"] // self.part_size) + 1)
            parts = {str(n): f"{where}/{n}" for n in numbers}
            upload["header"] = {"chunk_size": str(self.part_size)} | parts
        return wanted | {"actions": {"upload": upload, "verify": {"href": f"{self.url}/storage/verify"}}}

    def _store(self, asked: Asked, name: str) -> Answer:
        if sha256(asked.body) != name:
            return error(400, "that is another file")
        self.stored[name] = asked.body
        return Answer()

    def _store_part(self, asked: Asked, name: str, number: str) -> Answer:
        self.parts[f"{name}/{number}"] = asked.body
        return Answer(headers={"ETag": f'"{number}"'})

    def _join_parts(self, asked: Asked, name: str) -> Answer:
        body = b"".join(self.parts[f"{name}/{part['partNumber']}"] for part in json.loads(asked.body)["parts"])
        return self._store(Asked("PUT", "", "", {}, body), name)

    def _verify(self, asked: Asked) -> Answer:
        wanted = json.loads(asked.body)
        known = len(self.stored.get(wanted["oid"], b"")) == wanted["size"]
        return Answer() if known else error(404, "never uploaded")

    def _commit(self, asked: Asked, name: str, revision: str) -> Answer:
        repo, pull_request = self.repositories[name], "create_pr=1" in asked.query
        header, *operations = (json.loads(line) for line in asked.body.splitlines())
        at = repo.resolve(revision)
        if not may_commit(asked):
            return error(403, "You have no right to do that")
        if at is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        if not pull_request and header["value"].get("parentCommit", at) != at:
            return error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[at])
        for operation in operations:
            self._change(files, operation["key"], operation["value"])
        number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
        ref = f"refs/pr/{number}" if pull_request else revision
        commit = repo.commit(files, ref, header["value"]["summary"])
        page = f"{self.url}/{name}/discussions/{number}" if pull_request else None
        return as_json(commitUrl=f"{self.url}/{name}/commit/{commit}", commitOid=commit, pullRequestUrl=page)

    def _change(self, files: Files, kind: str, value: dict[str, Any]) -> None:
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = self.stored[value["oid"]]
        else:
            assert kind == "deletedFile", kind
            del files[value["path"]]

    _NAME = r"([^/]+/[^/]+)"
    _routes: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
        ("GET", rf"/api/models/{_NAME}", _info),
        ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", _info_at),
        ("HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
        ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
        ("POST", r"/api/repos/create", _create),
        ("POST", r"/api/validate-yaml", _validate),
        ("POST", rf"/api/models/{_NAME}/branch/([^/]+)", _branch),
        ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", _preupload),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _batch),
        ("POST", r"/storage/verify", _verify),
        ("POST", r"/storage/(\w+)", _join_parts),
        ("PUT", r"/storage/(\w+)", _store),
        ("PUT", r"/storage/(\w+)/(\d+)", _store_part),
        ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", _commit),
    )


def may_write(asked: Asked) -> bool:
    """Return whether a request carries the owner's token."""
    return asked.headers.get("authorization") == f"Bearer {TOKEN}"


def may_commit(asked: Asked) -> bool:
    """Return whether a request may change the branch, or opens a pull request for somebody with an account."""
    guest = asked.headers.get("authorization") == f"Bearer {GUEST}"
    return may_write(asked) or (guest and "create_pr=1" in asked.query)


def listed(path: str, body: bytes) -> dict[str, Any]:
    """Return a file as the hub lists it."""
    lfs = {"sha256": sha256(body), "size": len(body), "pointerSize": 130} if path.endswith(_LARGE) else None
    return {"rfilename": path, "size": len(body), "blobId": oid(path, body)} | ({"lfs": lfs} if lfs else {})


def oid(path: str, body: bytes) -> str:
    """Return the name of a file's content: the SHA-256 of a large one, git's own of another."""
    return sha256(body) if path.endswith(_LARGE) else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def as_json(status: int = 200, **values: Any) -> Answer:
    return Answer(json.dumps(values).encode(), status, {"Content-Type": "application/json"})


def error(status: int, message: str, code: str = "") -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(json.dumps({"error": message}).encode(), status, {"Content-Type": "application/json", **headers})
