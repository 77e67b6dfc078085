"""A hub that refuses or cannot be reached: one HubError at once, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_client import refusal, snapshot
from hub_faults import stall, status
from hub_server import Fault, HubServer, Repo
from huggingface_hub import constants

import bombus
from bombus.loader.repository import open_repository

SIZES = {"preset": "original", "num_blocks": 1}

NOT_FOUND = (
    "repository: does not exist on the hub, or is private; there is no local folder of that name either. "
    "Check the spelling, or pass token= for a private repository"
)
TOKEN = "Log in with `hf auth login`, or pass a valid token="
MAY_NOT = "Use a token that may read the repository, or try again: a link to a file holds for some minutes"
LIMIT = "or log in: with a token the limit is higher"
GATED = "repository: is gated. Accept its terms on the hub, then log in with `hf auth login` or pass token="


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (status(401, "RepoNotFound", "Repository not found"), NOT_FOUND),
        (status(404, "RepoNotFound"), NOT_FOUND),
        (status(403, "GatedRepo"), GATED),
        (status(401, "GatedRepo"), GATED),
        (
            status(401, None, "Invalid credentials in Authorization header"),
            "token: is missing, or is not accepted (401 Unauthorized: Invalid credentials in Authorization header). "
            + TOKEN,
        ),
        (
            status(403, None, "Access to this resource is disabled."),
            "repository: is disabled on the hub. Use another one",
        ),
        (status(403), f"file config.json: may not be read (403 Forbidden). {MAY_NOT}"),
        (
            status(404),
            "file config.json: could not be fetched: the hub answers 404 Not Found. Try again later",
        ),
        (
            status(429, Retry_After="300"),
            "file config.json: could not be fetched: there were too many requests (429 Too Many Requests). "
            f"Wait 300 seconds, {LIMIT}",
        ),
        (
            status(429, RateLimit='"resolvers";r=0;t=55'),
            "file config.json: could not be fetched: there were too many requests (429 Too Many Requests). "
            f"Wait 55 seconds, {LIMIT}",
        ),
        (
            status(429),
            "file config.json: could not be fetched: there were too many requests (429 Too Many Requests). "
            f"Wait some minutes, {LIMIT}",
        ),
        (
            status(404, "RevisionNotFound"),
            "revision: is not given, and there is no branch 'main'. Name another branch, tag or commit with revision=",
        ),
    ],
)
def test_a_refusal_is_said_at_once(hub: HubServer, folder: Path, pauses: list[float], fault: Fault, text: str) -> None:
    hub.fault("HEAD", "config.json", fault, times=99)
    assert refusal(bombus.load_plan) == f"owner/tiny: {text}"
    assert (hub.count("HEAD", "config.json"), pauses) == (1, [])


def test_names_that_the_hub_does_not_know(hub: HubServer, folder: Path) -> None:
    hub.repos["owner/gated"] = Repo(gated=True)
    assert refusal(bombus.load_plan, "nobody/nothing") == f"nobody/nothing: {NOT_FOUND}"
    assert refusal(bombus.load_plan, "owner/gated") == f"owner/gated: {GATED}"
    message = "revision 'v9': does not exist. Leave it out for the newest"
    assert refusal(bombus.load_plan, revision="v9") == f"owner/tiny@v9: {message}"
    assert refusal(bombus.load_plan, revision="0" * 40) == f"owner/tiny@{'0' * 40}: {message.replace('v9', '0' * 40)}"


def test_a_branch_that_is_gone_is_not_taken_from_the_cache(hub: HubServer, folder: Path) -> None:
    """A hub that says so is believed; only one that cannot be asked is not waited for."""
    hub.add("owner/tiny", folder, branch="next")
    bombus.load_plan("owner/tiny", revision="next")
    del hub.repos["owner/tiny"].branches["next"]
    text = "owner/tiny@next: revision 'next': does not exist. Leave it out for the newest"
    assert refusal(bombus.load_plan, revision="next") == text


@pytest.mark.parametrize("code", [500, 503])
def test_an_error_of_the_hub_is_waited_for_shortly(
    hub: HubServer, folder: Path, tmp_path: Path, pauses: list[float], code: int
) -> None:
    hub.fault("HEAD", "config.json", status(code), times=2)
    bombus.load_plan("owner/tiny")
    assert pauses == [1.0, 2.0]
    pauses.clear()
    hub.fault("HEAD", "tokenizer.json", status(code), times=99)
    name = {500: "500 Internal Server Error", 503: "503 Service Unavailable"}[code]
    assert refusal(bombus.load_tokenizer) == (
        f"owner/tiny: file tokenizer.json: could not be fetched: the hub answers {name}. Try again later"
    )
    assert pauses == [1.0, 2.0, 4.0]


def test_the_errors_of_has_are_those_of_find(hub: HubServer, folder: Path) -> None:
    repository = open_repository("owner/tiny")
    assert repository.has("config.json")
    assert not repository.has("absent.bin")
    for fault, text in (
        (status(429, Retry_After="9"), "there were too many requests"),
        (status(401, "RepoNotFound"), "does not exist on the hub"),
        (stall(0), "the hub cannot be reached (ReadTimeout:"),
    ):
        hub.fault("HEAD", "tokenizer.json", fault)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
            assert text in refusal(lambda _: repository.has("tokenizer.json"))
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"token": True}, "token: is asked for with token=True, but there is none on this machine. Log in with `hf"),
        ({"subfolder": "../other"}, "subfolder '../other': is not a folder of the repository (expected its path in"),
        ({"subfolder": "/etc"}, "subfolder '/etc': is not a folder of the repository"),
        ({"subfolder": "a\\b"}, "subfolder 'a\\\\b': is not a folder of the repository"),
        ({"revision": "../../../v1"}, "revision '../../../v1': is not the name of a branch, tag or commit"),
        ({"revision": ""}, "revision '': is not the name of a branch, tag or commit"),
    ],
)
def test_what_is_asked_for_is_checked_before_the_hub_is(
    hub: HubServer, folder: Path, options: dict[str, Any], text: str
) -> None:
    assert text in refusal(bombus.load_plan, **options)
    assert [request for request in hub.requests if request.file] == []


def test_an_id_that_the_hub_cannot_have(hub: HubServer, pauses: list[float]) -> None:
    for options in ({}, {"local_files_only": True}):
        text = refusal(bombus.load_plan, "owner/a--b", **options)
        assert text.startswith("owner/a--b: repository: is not an id of the hub: ")
    assert hub.requests == []


def test_a_hub_that_does_not_answer_is_asked_once(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.fault("HEAD", "config.json", stall(0), times=99)
    text = refusal(bombus.load_plan)
    assert text.startswith("owner/tiny: file config.json: is not in the local cache, and the hub cannot be reached (")
    assert text.endswith("). Check the network and HF_ENDPOINT, or give the path of a local folder")
    assert (hub.count("HEAD", "config.json"), pauses) == (1, [])


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "no address"])
def test_no_hub_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch, pauses: list[float], endpoint: str) -> None:
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    text = refusal(bombus.load_plan)
    assert text.startswith("owner/tiny: file config.json: is not in the local cache, and the hub cannot be reached (")
    assert pauses == []


@pytest.mark.parametrize("headers", [{}, {"X_Repo_Commit": "../../up"}, {"X_Repo_Commit": "a", "ETag": '"../../up"'}])
def test_something_that_is_no_hub(hub: HubServer, folder: Path, tmp_path: Path, headers: dict[str, str]) -> None:
    """A login page of the network; or names that would lead out of the cache."""
    hub.fault("HEAD", "config.json", status(200, Content_Type="text/html", **headers), times=99)
    assert refusal(bombus.load_plan) == (
        "owner/tiny: file config.json: is answered for by something that is not a Hugging Face hub: it names no "
        "commit. Check HF_ENDPOINT and the proxy, and whether this network wants a login first"
    )
    assert snapshot(tmp_path / "home") == {}
