"""What a file of weights seems to be, by its first bytes: for messages about a file that is not what its name says."""

from __future__ import annotations

from bombus.policies.errors import Problem

AGAIN = "download the file again, for example with `hf download`"
ZIP = b"PK\x03\x04"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def placeholder(start: bytes) -> Problem | None:
    """The problem of a file that stands where the weights should be; None for one that may be weights."""
    if start.startswith(b"version https://git-lfs"):
        return Problem(
            subject="file",
            message="is a Git LFS pointer, not the weights",
            remedy="run `git lfs pull` in the folder, or " + AGAIN,
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return Problem(subject="file", message="is an HTML page, not the weights", remedy=AGAIN)
    return None


def is_pickle(start: bytes) -> bool:
    """Whether a file starts as a pickle of protocol 2 to 5."""
    return start.startswith(_PICKLES)


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts as safetensors: with the length of a header, then JSON."""
    return int.from_bytes(start[:8], "little") <= 100_000_000 and start[8:9] == b"{"


def is_tar(start: bytes) -> bool:
    """Whether a file starts as a tar archive."""
    return start[257:262] == b"ustar"
