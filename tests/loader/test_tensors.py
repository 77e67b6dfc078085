"""Tensors in files: read into aligned memory of their own, and what happens when the file changes meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors_files import entry, file_of

from bombus.loader.safetensors import read_header
from bombus.policies.errors import CheckpointError


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 1 << 20])
def test_buffers_are_aligned_to_64_bytes_and_are_the_callers_own(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"w": entry(0, size)}, bytes(size)))
    info = read_header(path)["w"]
    first, second = info.read("w"), info.read("w")
    assert first.ctypes.data % 64 == 0
    assert second.ctypes.data % 64 == 0
    first[:] = 1
    assert not second.any()


@pytest.mark.parametrize("left", [0, 1, 4095])
def test_a_file_cut_after_its_header_was_read_is_an_error_and_not_a_crash(tmp_path, left):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"w": entry(0, 4096)}, bytes(4096)))
    info = read_header(path)["w"]
    os.truncate(path, info.start + left)
    with pytest.raises(CheckpointError) as caught:
        info.read("model.norm.weight")
    assert str(caught.value) == (
        f"{path}: tensor model.norm.weight: ends early: the file became shorter while it was read "
        f"(expected 4096 bytes, found {left}). Download the file again"
    )


def test_a_file_removed_after_its_header_was_read_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"w": entry(0, 4)}, bytes(4)))
    info = read_header(path)["w"]
    Path(path).unlink()
    with pytest.raises(CheckpointError) as caught:
        info.read("w")
    assert str(caught.value).startswith(f"{path}: tensor w: cannot be read: ")


def test_a_tensor_of_several_megabytes_is_read_whole_into_pages_of_its_own(tmp_path):
    """Large arrays get their memory another way; XLA takes them over just the same."""
    values = np.arange(700_001, dtype=np.float32)
    safetensors.numpy.save_file({"a": np.ones((3,), np.int8), "w": values}, tmp_path / "model.safetensors")
    found = read_header(tmp_path / "model.safetensors")["w"].read("w")
    np.testing.assert_array_equal(found, values)
    assert found.ctypes.data % 64 == 0
    placed = jax.device_put(found)
    assert placed.unsafe_buffer_pointer() == found.ctypes.data
