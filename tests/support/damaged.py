"""Checkpoints to damage, and what loading says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bombus

# Small: one tile per kernel, and nothing here is about tiles.
SIZES = {"preset": "original", "num_blocks": 1}


def edit(folder: Path, *without: str, **fields: Any) -> None:
    """Change fields of config.json, and take some out."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in without}), "utf-8")


def refusal(folder: Path | str, kind: type[bombus.LoadError], **options: Any) -> str:
    """The text of the error with which loading the folder ends, which is of just this kind."""
    with pytest.raises(bombus.LoadError) as caught:
        bombus.load_model(folder, **options)
    assert type(caught.value) is kind, caught.value
    assert isinstance(caught.value, ValueError)
    return str(caught.value)
