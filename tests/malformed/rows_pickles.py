"""Rows 53 to 56: pickles that want to run something, or to read or hold what is not theirs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from malformed import WEIGHTS, case
from meta_files import as_torch
from safetensors.numpy import load_file
from torch_files import Call, Name, storage, view, zip_file

from bombus import CheckpointError

BIN = "pytorch_model.bin"
SIX = np.arange(6, dtype=np.float32).tobytes()


def put(folder: Path, value: Any, data: bytes = SIX, **options: Any) -> None:
    """Put a pickle in the place of the weights."""
    (folder / WEIGHTS).unlink()
    (folder / BIN).write_bytes(zip_file(value, {"0": data}, **options))


@case("53", CheckpointError)
def reduce_of_os_system(folder: Path) -> None:
    put(folder, {"a": Call("posix.system", (f"touch {folder / 'ran'}",))})


@case("54", CheckpointError)
def unlisted_globals(folder: Path) -> None:
    put(folder, {"a": Name("builtins.eval"), "b": Call("torch.nn.modules.linear.Linear", (2, 3))})


@case("55", CheckpointError)
def view_beyond_its_storage(folder: Path) -> None:
    put(folder, {"a": view(storage(), 0, (2, 4), (4, 1)), "b": view(storage(), 6, (1,), (1,))})


@case("55", CheckpointError)
def negative_stride_and_offset(folder: Path) -> None:
    put(folder, {"a": view(storage(), 5, (6,), (-1,)), "b": view(storage(), -1, (2,), (1,))})


@case("55", CheckpointError)
def storage_larger_than_its_record(folder: Path) -> None:
    put(folder, {"a": view(storage(numel=2**40), 0, (2**40,), (1,))})


@case("55", CheckpointError)
def a_value_repeated_without_end(folder: Path) -> None:
    put(folder, {"a": view(storage(), 0, (2**30, 2**30), (0, 0))})


@case("56", CheckpointError)
def zip_bomb_in_a_tensor(folder: Path) -> None:
    """64 MB of zeros in 64 kB, for a storage of 24 bytes."""
    put(folder, {"a": view(storage())}, bytes(64 << 20), compression=zipfile.ZIP_DEFLATED)


@case("56", CheckpointError)
def zip_bomb_in_the_pickle(folder: Path) -> None:
    put(folder, b"\x80\x02" + b"N0" * (64 << 20) + b".", compression=zipfile.ZIP_DEFLATED)


@case("53-56")
def pickle_of_nothing_but_tensors(folder: Path) -> None:
    """The same interpreter reads it."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    (folder / BIN).write_bytes(as_torch(tensors))
