"""The corpus of malformed inputs: a case for each row of the list, as a function that spoils a checkpoint.

A case gets a folder with a small whole checkpoint (Llama in float32, or Qwen3 in block FP8 where it says so), damages
it, and may return what to do with it in place of loading it. `text` is the whole message, {folder} standing for the
folder; None means that the input is to be accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy_decoder import read_tensors
from safetensors.numpy import load_file, save_file

import bombus

Spoil = Callable[[Path], Callable[[], Any] | None]
WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@dataclass(frozen=True, kw_only=True)
class Case:
    """rows: the numbers in the list. kind: of the error; None where the input is accepted.

    traced: whether its memory is watched, which makes Python code several times slower.
    """

    rows: str
    name: str
    spoil: Spoil
    kind: type[bombus.BombusError] | None
    weights: str
    traced: bool

    def __str__(self) -> str:
        return f"{self.rows} {self.name}"


CASES: list[Case] = []


def case(
    rows: str, kind: type[bombus.BombusError] | None = None, *, weights: str = "f32", traced: bool = True
) -> Callable[[Spoil], Spoil]:
    """Add a function to the corpus."""

    def add(spoil: Spoil) -> Spoil:
        name = spoil.__name__.strip("_").replace("_", " ")
        CASES.append(Case(rows=rows, name=name, spoil=spoil, kind=kind, weights=weights, traced=traced))
        return spoil

    return add


def raw(folder: Path, data: bytes) -> None:
    """Put bytes in the place of the weights."""
    (folder / WEIGHTS).write_bytes(data)


def whole(folder: Path) -> bytes:
    """The weights' file."""
    return (folder / WEIGHTS).read_bytes()


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(header).to_bytes(8, "little") + header + data


def with_entry(folder: Path, name: str = NORM, **changes: Any) -> None:
    """Change what the header says of a tensor."""
    data = whole(folder)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] |= changes
    raw(folder, with_header(json.dumps(header).encode(), data[8 + length :]))


def small(entries: Mapping[str, Any] | str, data: bytes = bytes(8)) -> bytes:
    """A file of few tensors."""
    return with_header((entries if isinstance(entries, str) else json.dumps(entries)).encode(), data)


def entry(start: int = 0, stop: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def edit_tensors(folder: Path, changes: Mapping[str, np.ndarray | None]) -> None:
    """Replace, add or (None) take out tensors."""
    tensors = read_tensors(folder) | dict(changes)
    save_file({name: values for name, values in tensors.items() if values is not None}, folder / WEIGHTS)


def edit_config(folder: Path, *without: str, **fields: Any) -> None:
    """Change or take out fields of config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in without}))


def shard(folder: Path, weight_map: Mapping[str, Any] | None = None, **tensors: list[str]) -> None:
    """Split the weights into `one.safetensors` with those tensors and `two.safetensors` with the rest, and an index."""
    values = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: "one.safetensors" if name in tensors.get("one", [NORM]) else "two.safetensors" for name in values}
    for file in dict.fromkeys(places.values()):
        save_file({name: values[name] for name, place in places.items() if place == file}, folder / file)
    index = {"weight_map": places | dict(weight_map or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
