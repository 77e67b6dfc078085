"""The tests' own hub: huggingface_hub takes it for a real one, also where Bombus does not ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_client import attach
from hub_faults import cut
from hub_server import HubServer, Repo
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "sub/notes.txt": b"text"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        attach(server, monkeypatch, tmp_path)
        yield server


def test_a_snapshot_is_the_files_byte_for_byte(hub: HubServer) -> None:
    commit = hub.add("owner/model", FILES)
    folder = Path(huggingface_hub.snapshot_download("owner/model", endpoint=hub.endpoint))
    assert folder.name == commit
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES
    hosts = {request.file: request.host for request in hub.requests if request.method == "GET" and request.file}
    assert hosts == {"config.json": "hub", "sub/notes.txt": "hub", "model.safetensors": "cdn"}


def test_the_api_names_commits_and_files(hub: HubServer) -> None:
    first, second = hub.add("owner/model", {"a.json": b"1"}), hub.add("owner/model", FILES, branch="next")
    api = huggingface_hub.HfApi(endpoint=hub.endpoint)
    assert api.model_info("owner/model").sha == first
    info = api.model_info("owner/model", revision="next")
    assert (info.sha, [sibling.rfilename for sibling in info.siblings or ()]) == (second, list(FILES))
    sizes = {entry.path: entry.size for entry in api.list_repo_tree("owner/model", revision=second, recursive=True)}
    assert sizes == {name: len(content) for name, content in FILES.items()}


def test_refusals_are_what_huggingface_hub_calls_them(hub: HubServer) -> None:
    hub.add("owner/model", FILES)
    hub.repos["owner/gated"] = Repo(gated=True)
    hub.add("owner/private", FILES)
    hub.repos["owner/private"].token = "hf_right"

    def get(name: str, **options: str) -> str:
        return huggingface_hub.hf_hub_download(name, "config.json", **options)

    for name, error, options in (
        ("owner/absent", RepositoryNotFoundError, {}),
        ("owner/private", RepositoryNotFoundError, {"token": "hf_wrong"}),
        ("owner/gated", GatedRepoError, {}),
        ("owner/model", RevisionNotFoundError, {"revision": "v9"}),
    ):
        with pytest.raises(error) as caught:
            get(name, **options)
        assert caught.type is error
    assert Path(get("owner/private", token="hf_right")).read_bytes() == b"{}"


def test_a_fault_answers_as_often_as_it_is_asked_to(hub: HubServer) -> None:
    hub.add("owner/model", FILES)
    hub.fault("GET", "model.safetensors", cut(1000), times=2)
    path = huggingface_hub.hf_hub_download("owner/model", "model.safetensors")
    assert Path(path).read_bytes() == FILES["model.safetensors"]
    ranges = [request.headers.get("range") for request in hub.requests if request.method == "GET"]
    assert ranges == [None, "bytes=1000-", "bytes=2000-"]
