"""Calls of the operating system that fail, and what a failure must not leave behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def fail(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: BaseException,
    *,
    after: int = 0,
    when: Callable[..., bool] = lambda *_: True,
) -> list[Any]:
    """Let os.`name` raise `error` where `when(*arguments)`, but for the first `after` times; the refused calls."""
    real = getattr(os, name)
    let_through, refused = [], []

    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            if len(let_through) >= after:
                refused.append(arguments)
                raise error
            let_through.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)
    return refused


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process has open, the deleted ones among them."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the one of this listing
            continue
        if target.startswith(f"{folder}{os.sep}"):
            found.append(Path(target).name)
    return sorted(found)


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files too."""
    return sorted(os.listdir(folder))
