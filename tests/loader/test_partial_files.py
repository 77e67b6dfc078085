"""Files that are being written: what a killed process leaves, who removes it, and whose is never removed."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_writer
import live_writer
import numpy as np
import pytest
from failing_system import names, open_files

from bombus.loader.safetensors import read_header
from bombus.loader.write import TensorWriter, remove_partials, write_bytes

ONE = {"a": ((4,), np.dtype(np.float32))}
VALUES = np.arange(4, dtype=np.float32)
# As a process leaves it that was killed.
DEAD = ".model.safetensors.4194305-0badcafe.partial"


def write(path: Path, values: np.ndarray = VALUES) -> None:
    with TensorWriter(path, ONE) as writer:
        writer.write("a", values)


def test_killed_at_fifty_points(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Every file is the old or the new one, as a whole; and the next writer removes what was left."""
    checkpoint = tiny("qwen3", "f8_e4m3fn", preset="original", num_blocks=1)
    command = [sys.executable, killed_writer.__file__, str(tmp_path), str(checkpoint), "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    # So that this says something: they were killed before the end, after it, and with half a file.
    assert found["killed"] + found["finished"] == 50
    assert found["killed"] > 35
    assert min(found["old"], found["new"], found["partials"]) > 5


def test_a_file_that_is_being_written_is_nobody_elses_to_remove(tmp_path: Path) -> None:
    """Two processes, one of them in the middle; and a killed one's, which goes."""
    path = tmp_path / "model.safetensors"
    with subprocess.Popen(
        [sys.executable, live_writer.__file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        live = process.stdout.readline().strip()
        assert names(tmp_path) == [live]
        (tmp_path / DEAD).write_bytes(b"half")
        remove_partials(tmp_path)
        assert names(tmp_path) == [live]
        write(path)
        assert names(tmp_path) == sorted([live, path.name])
        assert read_header(path)["a"].read("a").tolist() == VALUES.tolist()
        process.stdin.close()
        assert process.wait() == 0
    assert names(tmp_path) == [path.name]
    np.testing.assert_array_equal(read_header(path)["values"].read("values"), live_writer.VALUES)


def test_nor_that_of_another_thread(tmp_path: Path) -> None:
    """A lock is a file's that is open, not a process's."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    with TensorWriter(first, ONE) as writer:
        other = threading.Thread(target=write, args=(second,))
        other.start()
        other.join()
        remove_partials(tmp_path)
        writer.write("a", VALUES)
    assert names(tmp_path) == [first.name, second.name]


def test_only_files_of_ours_are_removed(tmp_path: Path) -> None:
    """Hidden ones of others, that end alike, and a folder, stay."""
    foreign = [
        ".download.partial",
        ".model.safetensors.partial",
        "model.1-0badcafe.partial",
        ".x.1-0badcafe.partial.txt",
    ]
    foreign += [".model.safetensors.1-0BADCAFE.partial"]
    for name in (*foreign, DEAD):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".folder.1-00000000.partial").mkdir()
    os.symlink(tmp_path / ".download.partial", tmp_path / ".link.2-00000000.partial")
    write(tmp_path / "model.safetensors")
    assert names(tmp_path) == sorted([*foreign, ".folder.1-00000000.partial", "model.safetensors"])
    remove_partials(tmp_path / "absent")


def test_who_cleans_up_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the file is gone, or locked by who removes it: the writer takes another."""
    real, met = fcntl.flock, []

    def removed(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        remove_partials(tmp_path)
        met.append(names(tmp_path))
        monkeypatch.setattr(fcntl, "flock", locked)
        real(file, operation)

    def locked(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (partial,) = tmp_path.iterdir()
        other = os.open(partial, os.O_RDONLY)
        real(other, operation)
        try:
            real(file, operation)
        except BlockingIOError as error:
            met.append(error.errno)
            raise
        finally:
            partial.unlink()
            os.close(other)

    monkeypatch.setattr(fcntl, "flock", removed)
    write(tmp_path / "model.safetensors")
    assert met == [[], errno.EAGAIN]
    assert names(tmp_path) == ["model.safetensors"]
    assert not open_files(tmp_path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written all the same, and nobody's partial file is removed: it could be a live one's."""

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / DEAD).write_bytes(b"half")
    write(tmp_path / "model.safetensors")
    assert names(tmp_path) == [DEAD, "model.safetensors"]
    assert read_header(tmp_path / "model.safetensors")["a"].read("a").tolist() == VALUES.tolist()


@pytest.mark.parametrize("write_again", [lambda path: write(path, VALUES + 1), lambda path: write_bytes(path, b"text")])
def test_who_has_a_file_keeps_it(write_again: Callable[[Path], Any], tmp_path: Path) -> None:
    """A file that is mapped, linked from elsewhere, or is a link to another, is replaced and never written into."""
    path, linked, target = tmp_path / "model.safetensors", tmp_path / "hard", tmp_path / "target"
    write(path)
    before = path.read_bytes()
    os.link(path, linked)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        write_again(path)
        assert pages[:] == before
    assert linked.read_bytes() == before
    assert path.read_bytes() != before
    path.rename(target)
    path.symlink_to(target)
    kept = target.read_bytes()
    write_again(path)
    assert not path.is_symlink()
    assert target.read_bytes() == kept
    assert names(tmp_path) == ["hard", "model.safetensors", "target"]


def test_files_have_the_rights_that_the_user_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "model.safetensors")
        write_bytes(tmp_path / "text", b"")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
