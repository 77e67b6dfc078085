"""The cache as several have it: loads at the same time, what is in it, what is removed from it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import caching_process
import numpy as np
import pytest
from cached import SIZES, count_conversions, key_of
from caching_process import digest
from converted import as_bytes
from failing_system import fail, names, open_files
from safetensors.numpy import save_file

import bombus
from bombus.loader import cache as cache_module
from bombus.loader.cache import cached_entries, entry_to_json, remove_cached
from bombus.loader.safetensors import read_header
from bombus.loader.write import TensorWriter


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("llama", "bf16", **SIZES)


def test_threads_that_make_the_same(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them find nothing, and all write; one file is left, and nobody has it open when they are done with it."""
    plain, real = as_bytes(bombus.load_model(folder).params), cache_module.stream_parameters
    together = threading.Barrier(4, timeout=60)

    def stream(*arguments: Any) -> Any:
        together.wait()
        yield from real(*arguments)
        together.wait()

    monkeypatch.setattr(cache_module, "stream_parameters", stream)
    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(bombus.load_model, folder, cache=cache) for _ in range(4)]
        found = [load.result() for load in loads]
    assert all(as_bytes(loaded.params) == plain for loaded in found)
    assert names(cache) == [f"{key_of(folder)}.safetensors"]
    del found, loads
    gc.collect()
    assert open_files(cache) == []


def test_processes_that_make_the_same(folder: Path, cache: Path) -> None:
    """One is overtaken in the middle, publishes its file afterwards, and both have the right parameters."""
    with subprocess.Popen(
        [sys.executable, caching_process.__file__, str(folder), str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        (partial,) = names(cache)
        loaded = bombus.load_model(folder, cache=cache)
        (path,) = cache.glob("*.safetensors")
        assert names(cache) == sorted([partial, path.name])
        expected, inode = digest(loaded.params), path.stat().st_ino
        out, _ = process.communicate("\n")
        assert process.returncode == 0
    assert out == f"{expected}\n"
    assert names(cache) == [path.name]
    assert path.stat().st_ino != inode
    assert digest(loaded.params) == expected
    assert digest(bombus.load_model(folder, cache=cache).params) == expected


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_that_is_replaced_while_it_is_opened(
    moment: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after its header is read: the other's says another place of the checkpoint, and is longer."""
    expected = as_bytes(bombus.load_model(folder, cache=cache).params)
    (path,) = cache.iterdir()
    header, other = read_header(path), cache.parent / "other.safetensors"
    about = {"bombus_cache": json.dumps({"repository": "x" * 1000, "policy": ""})}
    with TensorWriter(other, {name: (info.shape, info.dtype) for name, info in header.items()}, about) as writer:
        for name, info in header.items():
            writer.write(name, info.read(name))

    def replace(now: str) -> None:
        if now == moment and other.exists():
            os.replace(other, path)

    def read_and_replace(asked: Path) -> Any:
        replace("before")
        found = read_header(asked)
        replace("after")
        return found

    made = count_conversions(monkeypatch)
    monkeypatch.setattr(cache_module, "read_header", read_and_replace)
    assert as_bytes(bombus.load_model(folder, cache=cache).params) == expected
    assert made == []
    assert not other.exists()


def test_a_file_that_is_removed_as_soon_as_it_is_there(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever empties the cache meanwhile: an error of ours, and the next load makes it."""
    write = cache_module._write

    def write_and_remove(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        path.unlink()

    monkeypatch.setattr(cache_module, "_write", write_and_remove)
    path = cache / f"{key_of(folder)}.safetensors"
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.load_model(folder, cache=cache)
    assert str(caught.value) == f"{path}: cache: was changed by somebody else while it was read. Try again"
    monkeypatch.undo()
    assert as_bytes(bombus.load_model(folder, cache=cache).params)


@pytest.fixture
def filled(folder: Path, cache: Path) -> list[str]:
    """Three sets of parameters in the cache; their keys, the largest first."""
    for policy in ("f32", None, "int8"):
        bombus.load_model(folder, policy=policy, cache=cache)
    return [key_of(folder, policy=policy) for policy in ("f32", None, "int8")]


def test_what_is_in_it(filled: list[str], folder: Path, cache: Path) -> None:
    entries = cached_entries(cache)
    assert [entry.key for entry in entries] == filled
    sizes = [(cache / f"{key}.safetensors").stat().st_size for key in filled]
    assert [entry_to_json(entry) for entry in entries] == [
        {
            "key": key,
            "repository": str(folder),
            "policy": policy,
            "path": str(cache / f"{key}.safetensors"),
            "nbytes": size,
        }
        for key, policy, size in zip(filled, [entry.policy for entry in entries], sizes, strict=True)
    ]
    assert [json.loads(entry.policy or "null") for entry in entries] == [
        bombus.load_plan(folder, policy=policy).plan.precision.to_json() for policy in ("f32", None, "int8")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert cached_entries(cache / "absent") == []


def foreign_files(cache: Path) -> dict[str, bytes]:
    """Files of others in the cache."""
    save_file({"a": np.zeros(3, np.float32)}, cache / "model.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, cache / "text.safetensors", {"bombus_cache": "not JSON"})
    save_file({"a": np.zeros(3, np.float32)}, cache / "list.safetensors", {"bombus_cache": "[1]"})
    (cache / "damaged.safetensors").write_bytes(b"\xff" * 20)
    (cache / "empty.safetensors").write_bytes(b"")
    (cache / ".download.partial").write_bytes(b"half")
    (cache / "notes.txt").write_text("mine")
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def test_files_of_others_are_left_alone(filled: list[str], cache: Path) -> None:
    kept = foreign_files(cache)
    for key in filled:
        del kept[f"{key}.safetensors"]
    (cache / "folder.safetensors").mkdir()
    (cache / "link.safetensors").symlink_to("nowhere")
    assert [entry.key for entry in cached_entries(cache)] == filled
    assert [entry.key for entry in remove_cached(folder=cache)] == filled
    assert names(cache) == sorted([*kept, "folder.safetensors", "link.safetensors"])
    assert {name: (cache / name).read_bytes() for name in kept} == kept


def test_some_are_removed_by_their_keys(filled: list[str], cache: Path) -> None:
    """Or by beginnings of them, which may be those of several; those of killed processes go too."""
    left = cache / f".{filled[0]}.safetensors.4194305-0badcafe.partial"
    left.write_bytes(b"half")
    assert [entry.key for entry in remove_cached([filled[1], filled[1][:9]], cache)] == [filled[1]]
    assert names(cache) == sorted(f"{key}.safetensors" for key in (filled[0], filled[2]))
    assert remove_cached([], cache) == []
    shutil.copy(cache / f"{filled[0]}.safetensors", cache / f"{filled[2][:8]}.safetensors")
    removed = remove_cached([filled[2][:8]], cache)
    assert {entry.key for entry in removed} == {filled[2], filled[2][:8]}
    assert names(cache) == [f"{filled[0]}.safetensors"]
    assert remove_cached(folder=cache / "absent") == []


@pytest.mark.parametrize("unknown", ["0" * 33, "", "model", "*"])
def test_a_key_that_is_not_there_removes_nothing(unknown: str, filled: list[str], cache: Path) -> None:
    """Not even an empty one, with which every key begins; beside one that is there."""
    before = foreign_files(cache)
    with pytest.raises(bombus.CheckpointError) as caught:
        remove_cached([filled[0], unknown, "another"], cache)
    assert str(caught.value) == (
        f"{cache}: 2 problems\n"
        f"  - key {unknown!r}: is not in the cache. See `bombus cache ls`\n"
        "  - key 'another': is not in the cache. See `bombus cache ls`"
    )
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_what_cannot_be_removed(filled: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "unlink", PermissionError(13, "Permission denied"))
    with pytest.raises(bombus.CheckpointError) as caught:
        remove_cached(filled[:1], cache)
    assert str(caught.value) == (
        f"{cache / filled[0]}.safetensors: file: could not be removed: Permission denied. "
        "Check the permissions of the folder"
    )


def test_entries_that_go_while_they_are_listed(filled: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process empties the cache: what is gone is not listed, and removing it again is no error."""
    entries = cached_entries(cache)
    real = cache_module.read_metadata

    def read_metadata(path: Path) -> Any:
        for name in names(cache):
            (cache / name).unlink()
        return real(path)

    monkeypatch.setattr(cache_module, "read_metadata", read_metadata)
    assert cached_entries(cache) == []
    monkeypatch.setattr(cache_module, "cached_entries", lambda folder: entries)
    assert remove_cached(folder=cache) == entries
