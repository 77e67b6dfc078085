"""This process, or another, as the client of a HubServer; and what it gets to see."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import HubServer

from bombus.policies.errors import HubError


def attach(hub: HubServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> list[float]:
    """Make a server the hub of this process, with its cache in `home`.

    Returns the seconds that will be asked to be slept; nobody sleeps. huggingface_hub reads its environment when it
    is imported, hence its constants.
    """
    pauses: list[float] = []
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "DOWNLOAD_CHUNK_SIZE": 100,  # what came is kept in pieces of this size; the files here are small
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", pauses.append)
    huggingface_hub.close_session()  # its connections would be another test's
    return pauses


def environment(hub: HubServer, home: Path, **others: str) -> dict[str, str]:
    """The environment of a process for which a server is the hub, with its cache in `home`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return {**clean, **variables, "NO_PROXY": "127.0.0.1", **others}


def snapshot(home: Path) -> dict[str, bytes]:
    """The files that a reader of the cache sees."""
    return {path.name: path.read_bytes() for path in home.glob("hub/models--*/snapshots/*/*")}


def refusal(load: Callable[..., Any], name: str = "owner/tiny", **options: Any) -> str:
    """The text of the one error; what it shows when nobody catches it has nothing of the libraries below."""
    with pytest.raises(HubError) as caught:
        load(name, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert "httpx" not in shown
    assert shown.count("Traceback") == 1
    return str(caught.value)
