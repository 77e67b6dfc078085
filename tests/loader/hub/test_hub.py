"""Repositories on the hub: what is fetched, from which commit, what is cached, who sees the token, and offline."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_client import attach, environment
from hub_faults import first, redirect, status
from hub_server import HubServer
from huggingface_hub import constants

import bombus
from bombus.loader.repository import Repository, open_repository
from bombus.policies.errors import CheckpointError, HubError

# Small: nothing here is about the model.
SIZES = {"preset": "original", "num_blocks": 1}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
OFFLINE = "is not in the local cache, and the network is switched off"
NO_TOKENIZER = "owner/tiny: tokenizer: neither tokenizer.json nor tokenizer.model is in the local cache"
REMEDY = "Unset HF_HUB_OFFLINE and local_files_only, or download the repository first"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        attach(server, monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "bf16", **SIZES)


@pytest.fixture
def sharded(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "bf16", shards=3, **SIZES)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails the test."""

    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)


def assert_same(loaded: bombus.LoadedModel, folder: Path) -> None:
    """The parameters are those of a local folder, bit for bit."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True),
        loaded.params,
        bombus.load_model(folder).params,
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_repository_loads_and_only_what_is_needed_is_fetched(
    hub: HubServer, tiny: Callable[..., Path], shards: int
) -> None:
    folder = tiny("qwen3", "bf16", shards=shards, **SIZES)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("owner/tiny", {**content, "README.md": b"#", "pytorch_model.bin": b"\x80\x02.", "onnx/a.safetensors": b""})
    assert_same(bombus.load_model("owner/tiny"), folder)
    weights = [WEIGHTS] if shards == 1 else [INDEX, *SHARDS]
    assert sorted(hub.fetched()) == sorted(["config.json", "generation_config.json", *weights])
    tokenizer = bombus.load_tokenizer("owner/tiny")
    assert tokenizer.decode(tokenizer.encode("text")) == "text"
    assert {"tokenizer.json", "tokenizer_config.json"} < set(hub.fetched())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_second_load_asks_once_and_fetches_nothing(hub: HubServer, tiny: Callable[..., Path], shards: int) -> None:
    folder = tiny("qwen3", "bf16", shards=shards, **SIZES)
    hub.add("owner/tiny", folder)
    bombus.load_model("owner/tiny")
    hub.requests.clear()
    assert_same(bombus.load_model("owner/tiny"), folder)
    assert [(request.method, request.file) for request in hub.requests] == [("HEAD", "config.json")]


def test_of_a_new_commit_only_what_changed_is_fetched(hub: HubServer, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    bombus.load_model("owner/tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("owner/tiny", {**files, "generation_config.json": b'{"eos_token_id": 7}'})
    hub.requests.clear()
    assert bombus.load_model("owner/tiny").generation_config.eos_token_ids == (7,)
    assert hub.fetched() == ["generation_config.json"]


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1"])
def test_all_files_are_of_the_commit_of_the_first(
    hub: HubServer, tiny: Callable[..., Path], folder: Path, revision: str | None
) -> None:
    """The branch moves to other weights right after config.json was sent; the old ones are loaded."""
    branch = revision or "main"
    commit = hub.add("owner/tiny", folder, branch)
    moved = tiny("qwen3", "bf16", seed=1, **SIZES)
    hub.fault("GET", "config.json", first(lambda: hub.add("owner/tiny", moved, branch)))
    assert_same(bombus.load_model("owner/tiny", revision=revision), folder)
    at = [request.file for request in hub.requests].index(WEIGHTS)
    assert all(f"/resolve/{commit}/" in request.path for request in hub.requests[at:])
    assert_same(bombus.load_model("owner/tiny", revision=revision), moved)


def test_a_file_that_is_not_there_pins_the_commit_too(hub: HubServer) -> None:
    hub.add("owner/tiny", {"config.json": b'{"a": 1}'})
    repository = open_repository("owner/tiny")
    assert repository.find("absent.json") is None
    hub.add("owner/tiny", {"config.json": b'{"a": 2}'})
    path = repository.find("config.json")
    assert path is not None
    assert path.read_bytes() == b'{"a": 1}'


def test_a_commit_as_the_revision_is_not_asked_for_again(hub: HubServer, folder: Path) -> None:
    commit = hub.add("owner/tiny", folder)
    hub.add("owner/tiny", {"config.json": b"{}"})
    for _ in range(2):
        hub.requests.clear()
        assert_same(bombus.load_model("owner/tiny", revision=commit), folder)
    assert hub.requests == []


def test_a_subfolder(hub: HubServer, folder: Path) -> None:
    hub.add("owner/tiny", {f"deep/model/{path.name}": path.read_bytes() for path in folder.iterdir()})
    for _ in range(2):
        hub.requests.clear()
        assert_same(bombus.load_model("owner/tiny", subfolder="deep/model/"), folder)
    assert hub.fetched() == []
    with pytest.raises(CheckpointError) as caught:
        bombus.load_spec("owner/tiny", subfolder="other")
    assert str(caught.value).startswith("owner/tiny: file config.json: is not there in subfolder 'other'. ")


@pytest.mark.parametrize("source", ["argument", "environment", "file"])
def test_a_token_reaches_the_hub_and_nobody_else(
    hub: HubServer, sharded: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are on another origin; config.json is redirected there only when it is fetched."""
    commit = hub.add("owner/tiny", sharded)
    hub.repos["owner/tiny"].token = "hf_secret"
    if source == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elif source == "file":
        Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
        Path(constants.HF_TOKEN_PATH).write_text("hf_secret\n")
    hub.fault("GET", "config.json", redirect(f"{hub.cdn}/owner/tiny/resolve/{commit}/config.json"))
    assert_same(bombus.load_model("owner/tiny", token="hf_secret" if source == "argument" else None), sharded)
    sent = {(request.host, request.headers.get("authorization")) for request in hub.requests if request.file}
    assert sent == {("hub", "Bearer hf_secret"), ("cdn", None)}
    assert {request.file for request in hub.requests if request.host == "cdn"} == {"config.json", *SHARDS}


def test_no_token_is_sent_that_was_not_asked_for(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/tiny", folder)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    bombus.load_spec("owner/tiny", token=False)
    assert {request.headers.get("authorization") for request in hub.requests} == {None}


def test_a_renamed_repository_is_followed_with_the_token(hub: HubServer, folder: Path) -> None:
    hub.add("owner/new", folder)
    hub.repos["owner/new"].token = "hf_secret"
    hub.renamed["owner/old"] = "owner/new"
    assert_same(bombus.load_model("owner/old", token="hf_secret"), folder)


def test_a_token_is_not_shown(hub: HubServer) -> None:
    assert "secret" not in repr(Repository(name="owner/tiny", token="secret"))
    hub.add("owner/tiny", {"config.json": b"{}"})
    for token in ("hf_secret", "my.secret"):
        message = f"the header was Authorization: Bearer {token}, so {token} hf_other_secret"
        hub.fault("HEAD", "config.json", status(403, message=message))
        with pytest.raises(HubError) as caught:
            bombus.load_spec("owner/tiny", token=token)
        assert str(caught.value) == (
            "owner/tiny: file config.json: may not be read (403 Forbidden: the header was Authorization: Bearer "
            "<secret> so <secret> <secret>). Use a token that may read the repository, or try again: a link to a file "
            "holds for some minutes"
        )


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf secret", "hf_s\u00e9cret"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(hub: HubServer, token: str) -> None:
    with pytest.raises(HubError) as caught:
        bombus.load_spec("owner/tiny", token=token)
    assert str(caught.value) == (
        "owner/tiny: token: is empty, or holds white space or other characters that no token has. "
        "Copy it again, without the end of the line"
    )
    assert hub.requests == []


@pytest.mark.parametrize("switch", ["argument", "constant"])
@pytest.mark.parametrize("shards", [1, 3])
def test_offline_nothing_is_asked(
    hub: HubServer,
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    shards: int,
    switch: str,
) -> None:
    folder = tiny("qwen3", "bf16", shards=shards, **SIZES)
    hub.add("owner/tiny", folder)
    bombus.load_model("owner/tiny")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switch == "constant")
    request.getfixturevalue("no_network")
    options = {"local_files_only": True} if switch == "argument" else {}
    assert_same(bombus.load_model("owner/tiny", **options), folder)
    with pytest.raises(HubError) as caught:
        bombus.load_tokenizer("owner/tiny", **options)
    assert str(caught.value) == f"{NO_TOKENIZER}, and the network is switched off. {REMEDY}"
    assert hub.requests == []


def test_offline_every_missing_file_is_listed(
    hub: HubServer, sharded: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An interrupted download: the index is there, and one shard of three."""
    hub.add("owner/tiny", sharded)
    bombus.load_model("owner/tiny")
    (snapshot,) = (tmp_path / "home" / "hub" / "models--owner--tiny" / "snapshots").iterdir()
    for name in SHARDS[1:]:
        (snapshot / name).unlink()
    request.getfixturevalue("no_network")
    with pytest.raises(HubError) as caught:
        bombus.load_model("owner/tiny", local_files_only=True)
    assert str(caught.value) == (
        f"owner/tiny: 2 problems\n  - file {SHARDS[1]}: {OFFLINE}. {REMEDY}\n  - file {SHARDS[2]}: {OFFLINE}. {REMEDY}"
    )


def test_offline_a_file_that_is_known_not_to_exist_is_no_matter_of_the_network(hub: HubServer) -> None:
    hub.add("owner/tiny", {"README.md": b"#"})
    for offline in (False, True):
        with pytest.raises(CheckpointError) as caught:
            bombus.load_spec("owner/tiny", local_files_only=offline)
        assert str(caught.value).startswith("owner/tiny: file config.json: is not there. ")


def test_a_hub_that_is_gone_is_no_error_for_what_is_cached(
    hub: HubServer, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/tiny", sharded)
    bombus.load_model("owner/tiny")
    hub.requests.clear()
    hub.fault("*", "*", status(503), times=99)
    assert_same(bombus.load_model("owner/tiny"), sharded)
    assert len(hub.requests) == 1
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}{revision}{filename}")
    assert_same(bombus.load_model("owner/tiny"), sharded)
    with pytest.raises(
        HubError, match=r"^owner/tiny: file tokenizer\.json: .* the hub cannot be reached \(ConnectError:"
    ):
        bombus.load_tokenizer("owner/tiny")


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_and_the_environment(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HUB_OFFLINE as they are, in processes of their own."""
    hub.add("owner/tiny", sharded)
    online = environment(hub, tmp_path / "other")
    fetched = run("-m", "bombus", "plan", "owner/tiny", "--token", "hf_secret", env=online)
    assert fetched.returncode == 0, fetched.stderr
    assert "  model.layers.{n}.mlp.gate_proj.weight " in fetched.stdout
    assert {r.headers.get("authorization") for r in hub.requests if r.host == "hub"} >= {"Bearer hf_secret"}
    hub.requests.clear()
    script = """
import socket, bombus
socket.socket.connect = None
bombus.load_plan("owner/tiny")
try:
    bombus.load_tokenizer("owner/tiny")
except bombus.HubError as error:
    print(error)
"""
    offline = run("-c", script, env=online | {"HF_HUB_OFFLINE": "1"})
    assert (offline.returncode, offline.stderr) == (0, "")
    assert offline.stdout == f"{NO_TOKENIZER}, and the network is switched off. {REMEDY}\n"
    assert hub.requests == []
