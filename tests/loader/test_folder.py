"""Files of local folders: links that lead out, and what is no file, are refused before they are opened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import attach
from hub_server import HubServer

import bombus
from bombus.loader.checkpoint import INDEX
from bombus.loader.folder import is_inside
from bombus.loader.repository import Repository, open_repository
from bombus.policies.errors import CheckpointError, HubError

SIZES = {"preset": "original", "num_blocks": 1}
WEIGHTS = "model.safetensors"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
NOT_REGULAR = "file: is not a regular file. Replace it by the real file"


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("qwen3", "bf16", **SIZES), tmp_path / "model"))


@pytest.fixture
def sharded(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("qwen3", "bf16", shards=3, **SIZES), tmp_path / "model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        attach(server, monkeypatch, tmp_path / "home")
        yield server


def move_out(path: Path, out: Path) -> Path:
    """Put a file elsewhere, and a link in its place."""
    out.mkdir(parents=True, exist_ok=True)
    path.rename(out / path.name)
    path.symlink_to(out / path.name)
    return out / path.name


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        bombus.load_model(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "generation_config.json"])
@pytest.mark.parametrize("beside", ["other", "model-2", "blobs"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str, beside: str) -> None:
    target = move_out(folder / name, tmp_path / beside)
    assert refusal(folder) == (
        f"{folder / name}: file: is a link out of the folder, to {target}, and was not opened. Put the file in the "
        f"place of the link, or load its own folder, {tmp_path / beside}"
    )


def test_every_link_out_of_the_folder_is_listed(sharded: Path, tmp_path: Path) -> None:
    targets = [move_out(sharded / name, tmp_path / "other") for name in SHARDS[1:]]
    lines = [
        f"\n  - {sharded / target.name}: is a link out of the folder, to {target}, and was not opened. "
        f"Put the file in the place of the link, or load its own folder, {tmp_path / 'other'}"
        for target in targets
    ]
    assert refusal(sharded) == f"{sharded}: 2 problems" + "".join(lines)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    move_out(folder / WEIGHTS, folder / "large")
    (folder / "again").symlink_to("large")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(f"again/{WEIGHTS}")
    bombus.load_model(folder)


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "away" / "link").symlink_to(folder, target_is_directory=True)
    bombus.load_model(tmp_path / "far" / "away" / "link")


def test_a_subfolder_may_not_be_a_link_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "sub").symlink_to(folder, target_is_directory=True)
    text = refusal(tmp_path / "outer", subfolder="sub")
    assert text.startswith(f"{tmp_path}/outer/sub/config.json: file: is a link out of the folder, to {folder}/config")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_snapshot_of_the_hugging_face_cache_loads_as_a_folder(
    hub: HubServer, tiny: Callable[..., Path], tmp_path: Path, shards: int
) -> None:
    """As huggingface_hub makes it, from the top and from a folder in it, and where the blobs are on another disk."""
    files = {path.name: path.read_bytes() for path in tiny("qwen3", "bf16", shards=shards, **SIZES).iterdir()}
    hub.add("owner/tiny", files | {f"sub/{name}": content for name, content in files.items()})
    bombus.load_model("owner/tiny")
    bombus.load_model("owner/tiny", subfolder="sub")
    (repository,) = (tmp_path / "home" / "hub").glob("models--*")
    (commit,) = (repository / "snapshots").iterdir()
    assert (commit / "config.json").is_symlink()
    for at in (commit, commit / "sub"):
        bombus.load_model(at)
    (repository / "blobs").rename(tmp_path / "disk")
    (repository / "blobs").symlink_to(tmp_path / "disk")
    bombus.load_model(commit)


def test_blobs_that_repositories_share_are_followed(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub 2: a blob may be a link to blobs/HA/HASH beside the repositories."""
    cache = tmp_path / "cache"
    commit, blobs, shared = cache / "models--a--b/snapshots/01", cache / "models--a--b/blobs", cache / "blobs/0a"
    for new in (commit, blobs, shared):
        new.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, commit)
    (commit / WEIGHTS).rename(shared / ("0a" * 32))
    (blobs / "12").symlink_to(f"../../blobs/0a/{'0a' * 32}")
    (commit / WEIGHTS).symlink_to("../../blobs/12")
    bombus.load_model(commit)
    # Any other file beside the repositories is out of the folder as before.
    (shared / ("0a" * 32)).rename(shared / "secret")
    (blobs / "12").unlink()
    (blobs / "12").symlink_to("../../blobs/0a/secret")
    assert "is a link out of the folder" in refusal(commit)


def test_the_blobs_of_another_repository_are_not_followed(folder: Path, tmp_path: Path) -> None:
    commit, other = tmp_path / "models--a--b" / "snapshots" / "01", tmp_path / "models--c--d" / "blobs"
    shutil.copytree(folder, commit)
    target = move_out(commit / WEIGHTS, other)
    assert f"is a link out of the folder, to {target}" in refusal(commit)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def unix_socket(path: Path) -> None:
    # By its last name: that of a socket has at most 107 bytes.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


@pytest.mark.parametrize("make", [fifo, directory, unix_socket])
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "generation_config.json"])
def test_what_is_no_regular_file_is_refused_unopened(
    folder: Path, name: str, linked: bool, make: Callable[[Path], None]
) -> None:
    """A FIFO blocks whoever opens it: the test would hang."""
    (folder / name).unlink()
    make(folder / "special" if linked else folder / name)
    if linked:
        (folder / name).symlink_to("special")
    assert refusal(folder) == f"{folder / name}: {NOT_REGULAR}"


def test_a_device_is_refused_unopened(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    assert f"{folder / WEIGHTS}: file: is a link out of the folder, to /dev/zero, and was not opened." in refusal(
        folder
    )


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "generation_config.json"])
def test_a_link_to_nothing_is_not_the_same_as_no_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/4567")
    target = folder.parent.parent / "blobs" / "4567"
    assert refusal(folder) == (
        f"{folder / name}: file: is a link to {target}, which is not there. Download the file again"
    )


def test_a_link_that_leads_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)
    assert refusal(folder).startswith(f"{folder / WEIGHTS}: file: cannot be opened: ")


def test_a_name_that_is_too_long(sharded: Path) -> None:
    name = "a" * 300 + ".safetensors"
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal(sharded) == f"{sharded / name}: file: cannot be opened: File name too long"


BAD = ["", ".", "..", "../config.json", "a/../../b", "/etc/passwd", "a\\b", "C:/a", "c:a", "a\0b", "a\nb", "\ud800"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_out_is_refused_by_every_way_to_a_file(hub: HubServer, folder: Path, name: str) -> None:
    hub.add("owner/tiny", folder)
    for repository in (open_repository(folder), open_repository("owner/tiny")):
        for ask in (repository.find, repository.has, lambda name, r=repository: r.fetch([name])):
            with pytest.raises(CheckpointError) as caught:
                ask(name)
            assert str(caught.value) == (f"{repository}: file {name!r}: is not the name of a file in the repository")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "a/b.json", "a b.json", "ä.json", "..a", "a..b/...c"])
def test_other_names_stay_inside(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize("subfolder", ["..", "../model", "/etc", "a\\b", "a/../.."])
def test_a_subfolder_that_leads_out_is_refused(folder: Path, subfolder: str) -> None:
    for make in (
        lambda: open_repository(folder, subfolder=subfolder),
        lambda: Repository(name="a", subfolder=subfolder),
    ):
        with pytest.raises(HubError) as caught:
            make()
        assert str(caught.value).endswith(
            f": subfolder {subfolder!r}: is not a folder of the repository "
            "(expected its path in the repository, with / and without ..)"
        )


@pytest.mark.parametrize("subfolder", ["deep/model", "deep/model/", "deep//model", "./deep/model"])
def test_a_subfolder_of_a_folder(folder: Path, tmp_path: Path, subfolder: str) -> None:
    shutil.copytree(folder, tmp_path / "outer" / "deep" / "model")
    bombus.load_model(tmp_path / "outer", subfolder=subfolder)


def test_no_subfolder_may_be_empty_text(folder: Path) -> None:
    bombus.load_model(folder, subfolder="")
