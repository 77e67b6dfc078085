"""The hub's protocol against a local server: what is fetched, what is cached, and each refusal's text.

huggingface_hub reads HF_ENDPOINT when it is imported, so every case runs in a process of its own.
"""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories: `repositories` maps an id to its folder; `paths` are those asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Path] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of /{owner}/{name}/resolve/{revision}/{path}, with the headers that huggingface_hub reads."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        repository, revision, path = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "", "/".join(parts[4:])
        self.server.requests.append(f"{self.command} {path or self.path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        folder = self.server.repositories.get(repository)
        if repository == "gated/model":
            self.refuse(403, "GatedRepo")
        elif folder is None:
            self.refuse(401, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif not (folder / path).is_file():
            self.refuse(404, "EntryNotFound")
        else:
            content = (folder / path).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{abs(hash(content)):x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running server."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def call(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the `bombus` command against the server, with a cache of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-m", "bombus", *arguments],
            env=clean | variables | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_sharded_repository_is_fetched_once(hub: Hub, call: Callable, tiny: Callable[..., Path]) -> None:
    """Only the needed files, then from the cache, then offline; a token reaches the endpoint."""
    hub.repositories["owner/tiny"] = tiny("qwen3", shards=2)
    first = call("plan", "owner/tiny", "--preserve-source-types", "--token", "hf_secret")
    assert first.returncode == 0, first.stderr
    assert "  model.layers.{n}.mlp.gate_proj.weight " in first.stdout
    assert "  f8_e4m3fn[320, 192] " in first.stdout
    fetched = {request.removeprefix("GET ") for request in hub.requests if request.startswith("GET")}
    assert {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"} <= fetched
    assert "tokenizer.json" not in fetched
    assert "Bearer hf_secret" in hub.tokens
    hub.requests.clear()
    assert call("plan", "owner/tiny").returncode == 0
    assert not [request for request in hub.requests if request.startswith("GET model-")]
    hub.requests.clear()
    offline = call("plan", "owner/tiny", "--offline")
    assert offline.returncode == 0, offline.stderr
    assert hub.requests == []
    missing = call("generate", "owner/tiny", "--prompt", "x", HF_HUB_OFFLINE="1")
    assert missing.returncode == 1
    assert "HubError: owner/tiny: file tokenizer.json: is not in the local cache, and the network is" in missing.stderr
    assert "Unset HF_HUB_OFFLINE and local_files_only" in missing.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nobody/nothing",), "does not exist on the hub, or is private; there is no local folder of that name either"),
        (("gated/model",), "repository: is gated. Accept its terms on the hub, then log in with `hf auth login`"),
        (("owner/tiny", "--revision", "v9"), "revision 'v9': does not exist. Leave it out for the newest"),
        (("owner/empty",), "file config.json: is not there"),
    ],
)
def test_refusals_of_the_hub(
    arguments: tuple[str, ...], text: str, hub: Hub, call: Callable, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """One line with what to do, no traceback."""
    (tmp_path / "empty").mkdir()
    hub.repositories |= {"owner/tiny": tiny("qwen3"), "owner/empty": tmp_path / "empty"}
    result = call("inspect", *arguments)
    assert result.returncode == 1
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_no_network(call: Callable) -> None:
    """A server that does not answer is said to be unreachable."""
    result = call("inspect", "owner/tiny", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert result.returncode == 1
    assert "the hub cannot be reached. Check the network and HF_ENDPOINT" in result.stderr
    assert "Traceback" not in result.stderr
