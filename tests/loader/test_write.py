"""Writing safetensors: files that others read, whole or not at all, whatever fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from failing_system import fail, names, open_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from bombus.loader.safetensors import DTYPES, read_header, read_metadata
from bombus.loader.write import TensorWriter, make_folder, remove_file, remove_partials, write_bytes
from bombus.policies.errors import CheckpointError

OLD = b"what was there before"
REMEDY = "Check the free space and the permissions of the folder"
# Odd sizes, none, no dimension, and multiples of 64 between them.
SHAPES = {
    "odd": ((3, 5), "U8"),
    "whole": ((16, 4), "F32"),
    "empty": ((0, 7), "F32"),
    "none": ((), "BF16"),
    "codes": ((5, 13), "F8_E4M3"),
    "scales": ((64,), "F8_E8M0"),
    "flags": ((3,), "BOOL"),
    "wide": ((9,), "F64"),
    "hälfte": ((32,), "F16"),
}


def made(shapes: dict[str, tuple[tuple[int, ...], str]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random bytes as arrays of these shapes and types."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, (shape, kind) in shapes.items():
        dtype = DTYPES[kind]
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = random.integers(0, 2 if kind == "BOOL" else 256, nbytes).astype(np.uint8)
        arrays[name] = raw.view(dtype).reshape(shape)
    return arrays


def declared(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def write(path: Path, arrays: dict[str, np.ndarray], order: list[str] | None = None) -> None:
    with TensorWriter(path, declared(arrays), {"format": "pt"}) as writer:
        for name in order or arrays:
            writer.write(name, arrays[name])


def check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The file is one for the safetensors library and for ours, holds every byte, and lies as it should."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in theirs.items()} == {
        name: (kinds[array.dtype], list(array.shape), array.tobytes()) for name, array in arrays.items()
    }
    header = read_header(path)
    assert {name: info.read(name).tobytes() for name, info in header.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
    assert all(info.start % 64 == 0 for info in header.values() if info.nbytes % 64 == 0)
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("order", range(6))
def test_tensors_of_every_size_in_any_order(order: int, tmp_path: Path) -> None:
    """Declared in one order and written in another."""
    path, arrays = tmp_path / "model.safetensors", made(SHAPES)
    random = np.random.default_rng(order)
    declare, fill = list(random.permutation(list(arrays))), list(random.permutation(list(arrays)))
    write(path, {name: arrays[name] for name in declare}, fill)
    check(path, arrays)
    assert read_metadata(path) == {"format": "pt"}
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("whole"), arrays["whole"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=40).filter(lambda name: name != "__metadata__"),
        st.tuples(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), st.sampled_from(sorted(DTYPES))),
        max_size=6,
    )
)
def test_any_tensors_under_any_names(tmp_path: Path, shapes: dict[str, Any]) -> None:
    path = tmp_path / "any.safetensors"
    write(path, made(shapes))
    check(path, made(shapes))


def test_arrays_that_lie_otherwise(tmp_path: Path) -> None:
    """Transposed, every second value, read only: what is written is what they hold, in C order."""
    values = np.arange(48, dtype=np.int32).reshape(6, 8)
    locked = values.copy()
    locked.flags.writeable = False
    arrays = {"turned": values.T, "every": values[::2, 1::3], "locked": locked, "back": values[::-1]}
    write(tmp_path / "model.safetensors", arrays)
    check(tmp_path / "model.safetensors", {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def test_a_system_that_writes_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: real(file, memoryview(data)[:7], position))
    write(tmp_path / "model.safetensors", made(SHAPES))
    write_bytes(tmp_path / "text", bytes(range(100)))
    assert (tmp_path / "text").read_bytes() == bytes(range(100))
    (tmp_path / "text").unlink()
    check(tmp_path / "model.safetensors", made(SHAPES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of before, alone in its folder."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(OLD)
    return path


def nothing_changed(path: Path) -> bool:
    return path.read_bytes() == OLD and names(path.parent) == [path.name] and not open_files(path.parent)


A = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({}, "never written: a, b"),
        ({"a": A}, "never written: b"),
        ({"a": [A, A], "b": A}, "written twice: a"),
        ({"a": A[:3]}, "a was to be float32(4,), not float32(3,)"),
        ({"a": A.reshape(2, 2)}, "a was to be float32(4,), not float32(2, 2)"),
        ({"a": A.astype(np.int32)}, "a was to be float32(4,), not int32(4,)"),
        ({"a": A.astype(">f4")}, "a was to be float32(4,), not >f4(4,)"),
    ],
)
def test_other_tensors_than_announced(tensors: dict[str, Any], text: str, path: Path) -> None:
    def attempt() -> None:
        with TensorWriter(path, declared({"a": A, "b": A})) as writer:
            for name, arrays in tensors.items():
                for array in arrays if isinstance(arrays, list) else [arrays]:
                    writer.write(name, array)

    with pytest.raises(ValueError) as caught:
        attempt()
    assert str(caught.value) == text
    assert nothing_changed(path)


@pytest.mark.parametrize("error", [RuntimeError("of the caller"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_inside_leaves_what_was_there(
    error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the partial file can no longer be removed: the error is the caller's."""

    def attempt() -> None:
        with TensorWriter(path, declared({"a": A})) as writer:
            writer.write("a", A)
            raise error

    with pytest.raises(type(error)) as caught:
        attempt()
    assert caught.value is error
    assert nothing_changed(path)
    fail(monkeypatch, "unlink", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(type(error)) as caught:
        attempt()
    assert caught.value is error
    assert not open_files(path.parent)
    monkeypatch.undo()
    remove_partials(path.parent)
    assert nothing_changed(path)


def is_partial(name: Any, *_: Any) -> bool:
    return str(name).endswith(".partial")


FULL, DENIED = OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied")
FAILURES = [
    ("open", DENIED, {"when": is_partial}),
    ("pwrite", FULL, {}),  # of the header
    ("pwrite", FULL, {"after": 1}),
    ("pwrite", OSError(errno.EDQUOT, "Disk quota exceeded"), {"after": 2}),
    ("fsync", OSError(errno.EIO, "Input/output error"), {}),
    ("fsync", FULL, {}),
    ("replace", DENIED, {}),
    ("replace", OSError(errno.EROFS, "Read-only file system"), {}),
]


@pytest.mark.parametrize(("call", "error", "how"), FAILURES, ids=lambda value: getattr(value, "strerror", None))
def test_what_the_system_refuses_is_said_and_leaves_what_was_there(
    call: str, error: OSError, how: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = fail(monkeypatch, call, error, **how)
    with pytest.raises(CheckpointError) as caught:
        write(path, {"a": A, "b": A})
    assert str(caught.value) == f"{path}: file: could not be written: {error.strerror}. {REMEDY}"
    assert caught.value.__cause__ is error
    assert len(refused) == 1
    assert nothing_changed(path)
    if how.get("after", 0) == 0:
        with pytest.raises(CheckpointError) as caught:
            write_bytes(path, b"new")
        assert str(caught.value) == f"{path}: file: could not be written: {error.strerror}. {REMEDY}"
        assert nothing_changed(path)


def test_a_disk_that_fills_up_in_the_middle_of_a_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is written, the rest refused."""
    real, left = os.pwrite, [100]

    def pwrite(file: int, data: Any, position: int) -> int:
        if not left[0]:
            raise FULL
        written = real(file, memoryview(data)[: left[0]], position)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(path, {"a": A, "b": A})
    assert left == [0]
    assert nothing_changed(path)


def test_a_file_system_that_does_not_sync_folders(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there by then: it is no error."""
    refused = fail(monkeypatch, "fsync", OSError(errno.EINVAL, "Invalid argument"), after=1)
    write(path, {"a": A})
    assert len(refused) == 1
    check(path, {"a": A})
    assert not open_files(path.parent)


def test_folders_that_cannot_be_written_into(tmp_path: Path) -> None:
    """One that is not there, one that is a file; and a folder in the place of the file."""
    absent, file = tmp_path / "absent" / "m", tmp_path / "file"
    file.write_bytes(OLD)
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    for path, reason in (
        (absent, "No such file or directory"),
        (file / "m", "Not a directory"),
        (taken, "Is a directory"),
    ):
        for attempt in (lambda path=path: write(path, {"a": A}), lambda path=path: write_bytes(path, b"new")):
            with pytest.raises(CheckpointError) as caught:
                attempt()
            assert str(caught.value) == f"{path}: file: could not be written: {reason}. {REMEDY}"
    with pytest.raises(CheckpointError) as caught:
        make_folder(file / "inside")
    assert str(caught.value) == (
        f"{file / 'inside'}: folder: cannot be made: Not a directory. Check the permissions of the folder that it is "
        "to be in, or give another"
    )
    with pytest.raises(CheckpointError) as caught:
        remove_file(taken)
    assert str(caught.value).startswith(f"{taken}: file: could not be removed: ")
    assert str(caught.value).endswith(". Check the permissions of the folder")
    assert (names(tmp_path), names(taken), file.read_bytes()) == (["file", "taken"], ["inside"], OLD)
    remove_file(tmp_path / "absent")
    remove_file(file)
    assert names(tmp_path) == ["taken"]
