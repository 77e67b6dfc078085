"""A hub on this machine, for tests: the protocol that huggingface_hub speaks, with commits, a CDN, and faults.

`HubServer` has two ports. The first is the hub: /{repository}/resolve/{revision}/{file} and the two addresses under
/api/models that list files. Small files it sends itself, weights it redirects to the second port, which stands for
the CDN: another origin, which must never see a token. Every request is recorded. A fault replaces the answer to
some of them.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

# What the hub keeps in Git LFS, and serves from a CDN.
LARGE = (".safetensors", ".bin", ".pth")
Files = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it came in. `host` is "hub" or "cdn"; names of headers are in lower case."""

    host: str
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def file(self) -> str:
        """The file that is asked for, where it is one."""
        return unquote(self.path.partition("?")[0].partition("/resolve/")[2].partition("/")[2])


@dataclass(kw_only=True)
class Repo:
    """A repository of the hub. With `token`, only who sends it may know of it."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as it is served."""

    name: str
    content: bytes
    commit: str

    @property
    def etag(self) -> str:
        """As on the hub: SHA-256 of the content of a large file, git's own hash of a small one."""
        if self.name.endswith(LARGE):
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


# Answers in the place of the server, or does something and returns False, so that the server answers.
Fault = Callable[["Handler", File], bool]


class HubServer:
    """A hub and its CDN while the `with` block runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self._faults: list[list[Any]] = []
        self._servers = [_Server(self, "hub"), _Server(self, "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Path | Files, branch: str = "main") -> str:
        """Put the files of a folder, or those given, into a new commit of a branch. Its hash."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(repr((name, len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def fault(self, method: str, file: str, fault: Fault, times: int = 1) -> None:
        """Answer the next `times` requests of a method for a file that is there by `fault`; "*" stands for all."""
        self._faults.append([method, file, fault, times])

    def forget_faults(self) -> None:
        """From now on every answer is as it should be."""
        self._faults.clear()

    def next_fault(self, method: str, file: str) -> Fault | None:
        """The fault for a request; it is used up."""
        for entry in self._faults:
            if entry[0] in (method, "*") and entry[1] in (file, "*") and entry[3] > 0:
                entry[3] -= 1
                return entry[2]
        return None

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()`, looked at after every request, holds."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout=120)

    def count(self, method: str, file: str) -> int:
        """How many requests of a method there were for a file."""
        return sum((request.method, request.file) == (method, file) for request in self.requests)

    def fetched(self) -> list[str]:
        """The files that were sent, in order; a part of one counts."""
        return [request.file for request in self.requests if request.method == "GET" and request.file]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, host: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.host = host

    def handle_error(self, *_: object) -> None:
        """Quiet: clients that go away are what many tests are about."""


class _Refusal(Exception):
    def __init__(self, code: int, error: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers | error_headers(error, message)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection of the hub or of the CDN."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(host=self.server.host, method=self.command, path=self.path, headers=headers)
        with hub.changed:
            hub.requests.append(request)
            hub.changed.notify_all()
        try:
            if not request.file:
                return self._list()
            file = self._find(request)
        except _Refusal as refusal:
            return self.answer(refusal.code, refusal.headers)
        fault = hub.next_fault(self.command, file.name)
        if fault is not None and fault(self, file):
            return None
        if request.host == "hub" and file.name.endswith(LARGE):
            repo = request.path.partition("/resolve/")[0]
            address = f"{hub.cdn}{repo}/resolve/{file.commit}/{quote(file.name)}?Signature=0123"
            linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            return self.answer(302, {"Location": address, "X-Repo-Commit": file.commit, **linked}, b"Found")
        return self.send_file(file)

    def _repo(self, name: str) -> Repo:
        repo = self.server.hub.repos.get(name)
        sent = self.headers.get("Authorization")
        if self.server.host == "hub" and (repo is None or (repo.token is not None and sent != f"Bearer {repo.token}")):
            raise _Refusal(401, "RepoNotFound", "Repository not found")
        assert repo is not None
        if repo.gated:
            raise _Refusal(403, "GatedRepo", "Access to this model is restricted")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _find(self, request: Request) -> File:
        name, _, rest = request.path.strip("/").partition("/resolve/")
        revision = unquote(rest.partition("/")[0])
        moved = self.server.hub.renamed.get(name)
        if moved is not None:
            raise _Refusal(307, "", "", Location=self.path.replace(quote(name), quote(moved), 1))
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        content = repo.commits[commit].get(request.file)
        if content is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        return File(name=request.file, content=content, commit=commit)

    def _list(self) -> None:
        """/api/models/{repository}[/revision/{revision}] and /api/models/{repository}/tree/{revision}."""
        name, _, revision = unquote(self.path.partition("?")[0]).removeprefix("/api/models/").partition("/revision/")
        name, tree, branch = name.partition("/tree/")
        repo = self._repo(name)
        commit = self._commit(repo, branch or revision or "main")
        files = [File(name=path, content=content, commit=commit) for path, content in repo.commits[commit].items()]
        answer: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}
        if tree:
            answer = [
                {"type": "file", "path": file.name, "oid": file.etag, "size": len(file.content)} for file in files
            ]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def send_file(self, file: File, stop: int | None = None) -> None:
        """Send a file, or the range of it that is asked for; up to byte `stop` of that, whatever was announced."""
        content, code, headers = file.content, 200, metadata(file)
        wanted = self.headers.get("Range")
        if wanted is not None and self.command == "GET":
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, code = content[start:], 206
        return self.answer(code, headers, content, stop)

    def answer(self, code: int, headers: Mapping[str, str], content: bytes = b"", stop: int | None = None) -> None:
        """Send an answer; the body up to byte `stop`."""
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:stop])
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def metadata(file: File) -> dict[str, str]:
    """The headers of a file that is sent."""
    return {"X-Repo-Commit": file.commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}


def error_headers(error: str | None, message: str | None) -> dict[str, str]:
    """The hub's headers of a refusal."""
    headers = {"X-Error-Code": error, "X-Error-Message": message}
    return {name: value for name, value in headers.items() if value}
