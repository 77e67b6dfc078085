"""What can go wrong with a repository on the hub, in words. `loader/hub.py` tells the cases apart."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping

from bombus.policies.errors import Problem

_SECRET = re.compile(r"(?<=Bearer )\S+|\bhf_\w+|(?<=//)[^/@\s]+(?=@)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

GATED = Problem(
    subject="repository",
    message="is gated",
    remedy="accept its terms on the hub, then log in with `hf auth login` or pass token=",
)
NOT_FOUND = Problem(
    subject="repository",
    message="does not exist on the hub, or is private; there is no local folder of that name either",
    remedy="check the spelling, or pass token= for a private repository",
)
DISABLED = Problem(subject="repository", message="is disabled on the hub", remedy="use another one")
NO_TOKEN = Problem(
    subject="token",
    message="is asked for with token=True, but there is none on this machine",
    remedy="log in with `hf auth login`, or pass the token itself",
)


def no_revision(revision: str | None) -> Problem:
    """A branch, tag or commit that the repository does not have; None is the one that is taken unasked."""
    if revision is None:
        remedy = "name another branch, tag or commit with revision="
        return Problem(subject="revision", message="is not given, and there is no branch 'main'", remedy=remedy)
    return Problem(subject=f"revision {revision!r}", message="does not exist", remedy="leave it out for the newest")


def refused(name: str, status: int, answer: str, headers: Mapping[str, str]) -> Problem:
    """A refusal by its HTTP status; `answer` is what the hub says beside it."""
    file = f"file {name}"
    if status == 401:
        remedy = "log in with `hf auth login`, or pass a valid token="
        return Problem(subject="token", message=f"is missing, or is not accepted ({answer})", remedy=remedy)
    if status == 403:
        remedy = "use a token that may read the repository, or try again: a link to a file holds for some minutes"
        return Problem(subject=file, message=f"may not be read ({answer})", remedy=remedy)
    if status == 429:
        message = f"could not be fetched: there were too many requests ({answer})"
        # Seconds, or `"api";r=0;t=SECONDS`.
        wait = re.search(r"\d+$", headers.get("Retry-After") or headers.get("RateLimit") or "")
        remedy = f"wait {wait[0]} seconds" if wait else "wait some minutes"
        return Problem(subject=file, message=message, remedy=f"{remedy}, or log in: with a token the limit is higher")
    return Problem(subject=file, message=f"could not be fetched: the hub answers {answer}", remedy="try again later")


def unreachable(name: str, error: BaseException) -> Problem:
    """No answer of the hub, and no copy of the file."""
    return Problem(
        subject=f"file {name}",
        message=f"is not in the local cache, and the hub cannot be reached ({line(error)})",
        remedy="check the network and HF_ENDPOINT, or give the path of a local folder",
    )


def no_hub(name: str) -> Problem:
    """An answer that lacks what every answer of the hub has."""
    return Problem(
        subject=f"file {name}",
        message="is answered for by something that is not a Hugging Face hub: it names no commit",
        remedy="check HF_ENDPOINT and the proxy, and whether this network wants a login first",
    )


def page(name: str) -> Problem:
    """A page for people, with the status of success."""
    return Problem(
        subject=f"file {name}",
        message="came as an HTML page in the place of the file, and was thrown away",
        remedy="check HF_ENDPOINT and the proxy, and try again",
    )


def broken_off(name: str, error: BaseException, size: int | None) -> Problem:
    """A download that did not come to its end, by the network or by the disk."""
    file = f"file {name}"
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "No space left on device" in str(error):  # hf_xet raises a RuntimeError with these words
        return Problem(
            subject=file,
            message="could not be written: the disk is full",
            expected=None if size is None else f"room for {size} bytes",
            remedy="make room, or set HF_HOME or cache_dir= to a folder on another disk",
        )
    if number in _NOT_WRITABLE:
        remedy = "set HF_HOME or cache_dir= to a folder that you may write to"
        return Problem(subject=file, message=f"could not be written: {line(error)}", remedy=remedy)
    return Problem(subject=file, message=f"could not be fetched: {line(error)}", remedy="try again")


def not_cached(name: str) -> Problem:
    """A file that is not on this machine where the network must not be used."""
    return Problem(
        subject=f"file {name}",
        message="is not in the local cache, and the network is switched off",
        remedy="unset HF_HUB_OFFLINE and local_files_only, or download the repository first",
    )


def line(error: object) -> str:
    """The first line of an error's text, without tokens and passwords."""
    kind = "" if isinstance(error, (str, OSError)) else f"{type(error).__name__}: "
    return _SECRET.sub("<secret>", kind + next(iter(str(error).strip().splitlines()), "no reason is given"))
