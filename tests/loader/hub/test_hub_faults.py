"""Downloads that break off, or bring something else: one HubError, nothing partial, and the next run succeeds."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_client import environment, refusal, snapshot
from hub_faults import body, cut, first, stall, status
from hub_server import Fault, HubServer
from huggingface_hub import constants

import bombus

SIZES = {"preset": "original", "num_blocks": 1}
WEIGHTS = "model.safetensors"
PAGE = b"  <!DOCTYPE html><html><title>Log in</title></html>"


def assert_whole(folder: Path, home: Path, load: Callable[..., Any] = bombus.load_plan) -> None:
    """The next run succeeds, and what is in the cache are the files of the folder, byte for byte."""
    load("owner/tiny")
    assert snapshot(home)[WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("weights", [False, True])
def test_a_connection_that_is_cut_is_resumed(hub: HubServer, folder: Path, tmp_path: Path, weights: bool) -> None:
    name = WEIGHTS if weights else "config.json"
    hub.fault("GET", name, cut(150), times=2)
    assert_whole(folder, tmp_path / "home")
    assert snapshot(tmp_path / "home")[name] == (folder / name).read_bytes()
    ranges = [
        request.headers.get("range") for request in hub.requests if request.method == "GET" and request.file == name
    ]
    assert ranges == [None, "bytes=100-", "bytes=200-"]


def test_a_server_that_falls_silent_is_asked_for_the_rest(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.fault("GET", WEIGHTS, stall(1000))
    assert_whole(folder, tmp_path / "home")
    assert hub.count("GET", WEIGHTS) >= 2


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (cut(0), "could not be fetched: RemoteProtocolError: "),
        (cut(150, reset=True), "could not be fetched: ReadError: "),
        (status(500), "could not be fetched: the hub answers 500 Internal Server Error. Try again later"),
        (
            status(403),
            "may not be read (403 Forbidden). Use a token that may read the repository, or try again: a link",
        ),
        (status(404), "could not be fetched: the hub answers 404 Not Found. Try again later"),
        (status(429), "could not be fetched: there were too many requests (429 Too Many Requests). Wait some minutes"),
        (body(b"short"), "could not be fetched: Consistency check failed: file should be of size "),
        (body(b"long" * 100_000), "could not be fetched: Consistency check failed: file should be of size "),
        (body(PAGE), "came as an HTML page in the place of the file, and was thrown away. Check HF_ENDPOINT and the"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    hub: HubServer, folder: Path, tmp_path: Path, fault: Fault, text: str
) -> None:
    hub.fault("GET", WEIGHTS, fault, times=99)
    assert refusal(bombus.load_plan).startswith(f"owner/tiny: file {WEIGHTS}: {text}")
    assert WEIGHTS not in snapshot(tmp_path / "home")
    hub.forget_faults()
    assert_whole(folder, tmp_path / "home")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_page_that_passes_for_the_file_does_not_stay_in_the_cache(
    hub: HubServer, folder: Path, tmp_path: Path, name: str
) -> None:
    """A proxy that answers for every address with its own page, and with the headers of the hub."""
    hub.fault("*", name, body(PAGE), times=99)
    page = f"owner/tiny: file {name}: came as an HTML page in the place of the file, and was thrown away. "
    assert refusal(bombus.load_plan) == page + "Check HF_ENDPOINT and the proxy, and try again"
    hub.forget_faults()
    assert_whole(folder, tmp_path / "home")


FULL = (
    "the disk is full (expected room for {size} bytes). Make room, or set HF_HOME or cache_dir= to a folder "
    "on another disk"
)


class _Full:
    """A file on a disk without room."""

    def __init__(self, file: Any, error: Exception) -> None:
        self.file = file
        self.error = error

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> None:
        self.file.write(content[:10])
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space"), FULL),
        (OSError(errno.EDQUOT, "Quota exceeded"), FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FULL),
        (
            OSError(errno.EROFS, "Read-only file system"),
            f"[Errno {errno.EROFS}] Read-only file system. Set HF_HOME or cache_dir= to a folder that you may write to",
        ),
    ],
)
def test_a_disk_that_cannot_be_written(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    bombus.load_spec("owner/tiny")
    real = Path.open

    def open_(path: Path, *arguments: Any, **options: Any) -> Any:
        file = real(path, *arguments, **options)
        return _Full(file, error) if path.name.endswith(".incomplete") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        found = refusal(bombus.load_plan)
    size = (folder / WEIGHTS).stat().st_size
    assert found == f"owner/tiny: file {WEIGHTS}: could not be written: {text.format(size=size)}"
    assert WEIGHTS not in snapshot(tmp_path / "home")
    assert_whole(folder, tmp_path / "home")


def start(hub: HubServer, home: Path) -> subprocess.Popen[str]:
    """Another process that reads the plan of owner/tiny."""
    return subprocess.Popen(
        [sys.executable, "-c", "import bombus; print(bombus.load_plan('owner/tiny').nbytes)"],
        env=environment(hub, home, HF_HUB_DOWNLOAD_TIMEOUT="120"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_killed_leaves_nothing_that_is_read(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.fault("GET", WEIGHTS, stall(1000))
    process = start(hub, tmp_path / "home")
    hub.wait_for(lambda: hub.count("GET", WEIGHTS) == 1)
    process.kill()
    process.communicate()
    seen = snapshot(tmp_path / "home")
    assert "config.json" in seen
    assert WEIGHTS not in seen
    assert_whole(folder, tmp_path / "home")


def test_two_processes_at_once_fetch_a_file_once(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """The first has begun to fetch the weights and is held until the second wants them too."""
    both = 4  # each asks once by itself, and huggingface_hub once more
    hub.fault("GET", WEIGHTS, first(lambda: hub.wait_for(lambda: hub.count("HEAD", WEIGHTS) >= both)))
    processes = [start(hub, tmp_path / "home") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, f"{bombus.load_plan(folder).nbytes}\n"), err
    assert hub.count("GET", WEIGHTS) == 1
    assert_whole(folder, tmp_path / "home", bombus.load_model)
