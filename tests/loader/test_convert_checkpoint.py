"""convert_checkpoint writes what save_model writes of a loaded model, with one parameter in memory at a time."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from converted import as_bytes
from damaged import SIZES, edit
from failing_system import fail, names, open_files
from meta_files import meta_params, meta_tensors, write_meta
from quantized_files import raw_tensors
from safetensors.numpy import load_file, save_file
from tqdm import TMonitor

import bombus
from bombus.loader import cache as cache_module

# The package has a function of this name.
convert_module = importlib.import_module("bombus.loader.convert_checkpoint")

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MIXED = {"attention": "f16", "feed_forward": "int4(group=16, zero_points)", "embedding": "nvfp4", "norm": "f32"}
CASES: dict[str, dict[str, Any]] = {
    "dequantized": {},
    "preserved": {"preserve_source_types": True},
    "f32": {"policy": "f32"},
    "int8": {"policy": "int8"},
    "mxfp4": {"policy": "mxfp4"},
    "mixed": {"policy": MIXED},
    "mixed with FP8": {"policy": {"*.gate.*": "bfp8"}, "preserve_source_types": True},
    "no head": {"architecture": "base"},
}


def tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor by name: type, shape, bytes; from all shards that the folder has."""
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        place = path.parent / f"{path.stem}.alone"
        place.mkdir()
        shutil.copy(path, place / WEIGHTS)
        found |= raw_tensors(place)
        shutil.rmtree(place)
    return found


def texts(folder: Path) -> dict[str, Any]:
    """The configurations."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*config.json")}


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file: bytes, inode and time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000], ids=["one file", "shards"])
@pytest.mark.parametrize("case", CASES)
def test_it_writes_what_save_model_writes(
    case: str, shard_bytes: int, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Tensor by tensor, with the same configuration, and the tokenizer of the checkpoint beside it."""
    folder = tiny("qwen3", "f8_e4m3fn", **SIZES)
    loaded = bombus.load_model(folder, **CASES[case])
    bombus.save_model(loaded, tmp_path / "saved", max_shard_bytes=shard_bytes)
    report = bombus.convert_checkpoint(folder, tmp_path / "made", max_shard_bytes=shard_bytes, **CASES[case])
    saved, made = tmp_path / "saved", tmp_path / "made"
    assert tensors(made) == tensors(saved)
    assert (len(list(made.glob("*.safetensors"))) > 1) == (made / INDEX).exists() == (shard_bytes == 20_000)
    tokenizer = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    assert {name: (made / name).read_bytes() for name in tokenizer} == tokenizer
    assert texts(made) == {**texts(saved), "tokenizer_config.json": json.loads(tokenizer["tokenizer_config.json"])}
    if shard_bytes == 20_000:
        index = [json.loads((place / INDEX).read_text()) for place in (saved, made)]
        assert index[0]["metadata"] == index[1]["metadata"]
        assert index[0]["weight_map"].keys() == index[1]["weight_map"].keys()
    assert report.to_json() | {"seconds": None} == loaded.report.to_json() | {"seconds": None}
    again = bombus.load_model(made, preserve_source_types=True)
    assert as_bytes(again.params) == as_bytes(loaded.params)
    assert again.model.formats == loaded.model.formats
    assert names(made) == sorted(path.name for path in made.iterdir() if not path.name.startswith("."))


def test_the_golden_story(data: Path, tmp_path: Path) -> None:
    """A trained model has the same logits and tells the same after it was written in shards."""
    folder = data / "stories260K-hf"
    golden, prompt = (folder / "golden_greedy.txt").read_text(), "Once upon a time"
    bombus.convert_checkpoint(folder, tmp_path, max_shard_bytes=200_000)
    loads = [bombus.load_model(folder), bombus.load_model(tmp_path)]
    tokens = np.array([[1, 403, 407]], np.int32)
    np.testing.assert_array_equal(*(jax.jit(load.model.apply)(load.params, tokens).logits for load in loads))
    text = bombus.generate(loads[1], bombus.load_tokenizer(tmp_path), prompt, max_new_tokens=60)
    assert len(text) > 100
    assert golden.startswith(prompt + text)


@pytest.mark.parametrize("shards", [1, 2])
def test_metas_layout_becomes_safetensors(shards: int, tiny: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny("llama", "f32", **SIZES)
    folder = write_meta(tmp_path / "meta", meta_tensors(base, shards=shards), meta_params(base))
    bombus.convert_checkpoint(folder, tmp_path / "made")
    assert as_bytes(bombus.load_model(tmp_path / "made").params) == as_bytes(bombus.load_model(base).params)


def test_pickles_become_safetensors(data: Path, tmp_path: Path) -> None:
    folder = data / "tiny-llama-bin"
    bombus.convert_checkpoint(folder, tmp_path / "made")
    assert (tmp_path / "made" / WEIGHTS).exists()
    assert not list((tmp_path / "made").glob("*.bin"))
    assert as_bytes(bombus.load_model(tmp_path / "made").params) == as_bytes(bombus.load_model(folder).params)


@pytest.mark.parametrize("module", [convert_module, cache_module], ids=["convert", "cache"])
def test_one_parameter_is_in_memory_at_a_time(
    module: Any, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the next one is asked for, nothing of those before is alive. So for a conversion, so for the cache."""
    real, alive = module.stream_parameters, []

    def stream(*arguments: Any) -> Any:
        for arrays in real(*arguments):
            references = [weakref.ref(array) for array in arrays.values()]
            yield arrays
            del arrays
            alive.append(sum(reference() is not None for reference in references))

    monkeypatch.setattr(module, "stream_parameters", stream)
    folder = tiny("qwen3", "f8_e4m3fn", **SIZES)
    if module is convert_module:
        bombus.convert_checkpoint(folder, tmp_path / "made", preserve_source_types=True, max_shard_bytes=10_000)
        assert alive == [0] * 12  # the last of 13 is not followed by another
    else:
        bombus.load_model(folder, cache=tmp_path / "made", preserve_source_types=True)
        assert alive == [0] * 13


def test_missing_parameters_are_not_made_up(llama: Path, tmp_path: Path) -> None:
    """Not with strict=False either, which makes them for a model; nothing is written."""
    found = load_file(llama / WEIGHTS)
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        del found[name]
    save_file(found, llama / WEIGHTS)
    with pytest.raises(bombus.PlanError) as caught:
        bombus.convert_checkpoint(llama, tmp_path / "made", strict=False)
    assert str(caught.value) == (
        f"{llama}: 2 problems\n"
        "  - parameter decoder.blocks.0.self_attention_norm.scale: is not in the checkpoint, so not in another\n"
        "  - parameter output_norm.scale: is not in the checkpoint, so not in another"
    )
    assert not (tmp_path / "made").exists()
    with pytest.raises(bombus.PlanError, match=r"tensor model\.norm\.weight: is missing"):
        bombus.convert_checkpoint(llama, tmp_path / "made")


@pytest.mark.parametrize("way", ["itself", "a link", "relative", "a subfolder", "shards", "a snapshot"])
def test_a_checkpoint_is_not_written_over_itself(
    way: str, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever path, and of the hub's cache too: nothing in it is touched."""
    folder = tmp_path / "models--owner--tiny" / "snapshots" / ("f" * 40)
    shutil.copytree(tiny("llama", "bf16", shards=3 if way == "shards" else 1, **SIZES), folder)
    (tmp_path / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "models--owner--tiny" / "refs" / "main").write_text("f" * 40)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    repo, target, options = {
        "itself": (folder, folder, {}),
        "a link": (folder, tmp_path / "link", {}),
        "relative": (tmp_path / "link", Path("../snapshots") / folder.name, {}),
        "a subfolder": (folder.parent, folder, {"subfolder": folder.name}),
        "shards": (folder, folder, {}),
        "a snapshot": ("owner/tiny", folder, {"cache_dir": tmp_path, "local_files_only": True}),
    }[way]
    before = contents(folder)
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.convert_checkpoint(repo, target, **options)
    assert str(caught.value) == f"{target}: folder: is the checkpoint itself. Give another folder"
    assert contents(folder) == before
    bombus.convert_checkpoint(repo, folder / "inside", **options)
    assert {name: value for name, value in contents(folder).items() if not name.startswith("inside")} == before


def test_over_what_an_earlier_one_left(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Shards over a single file, fewer over more, a single one over shards: only what was written last is read.

    The same for defaults of generation that the new checkpoint does not have.
    """
    made, old = tmp_path / "made", tiny("llama", "bf16", shards=2, **SIZES)
    new = Path(shutil.copytree(tiny("llama", "bf16", seed=1, **SIZES), tmp_path / "new"))
    (new / "generation_config.json").unlink()
    edit(new, "eos_token_id")
    expected = {folder: as_bytes(bombus.load_model(folder).params) for folder in (old, new)}
    for folder, size in ((old, 10**9), (new, 20_000), (old, 40_000), (new, 10**9), (old, 20_000), (new, 40_000)):
        bombus.convert_checkpoint(folder, made, max_shard_bytes=size)
        assert as_bytes(bombus.load_model(made).params) == expected[folder]
        shards = list(made.glob("*.safetensors"))
        assert (made / INDEX).exists() == (len(shards) > 1) == (size < 10**9)
        assert set(tensors(made)) == set(tensors(old))
        assert (made / "generation_config.json").exists() == (folder == old)
        assert bombus.load_generation_config(made) == bombus.load_generation_config(folder)
        if len(shards) > 1:
            assert {path.name for path in shards} == set(json.loads((made / INDEX).read_text())["weight_map"].values())


def test_the_tokenizer_of_an_earlier_one_is_not_read(tiny: Callable[..., Path], llama: Path, tmp_path: Path) -> None:
    """Of two files of tokenizers one would win. A checkpoint without any leaves what somebody put there."""
    made = tmp_path / "made"
    bombus.convert_checkpoint(tiny("llama", "bf16", **SIZES), made)
    (made / "notes.txt").write_text("mine")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).unlink()
    bombus.convert_checkpoint(llama, made)
    assert {"tokenizer.json", "tokenizer_config.json", "notes.txt"} <= set(names(made))
    (llama / "tokenizer.model").write_bytes(b"pieces")
    bombus.convert_checkpoint(llama, made)
    assert (made / "tokenizer.model").read_bytes() == b"pieces"
    assert {"tokenizer.json", "tokenizer_config.json"}.isdisjoint(names(made))
    assert (made / "notes.txt").exists()


@pytest.mark.parametrize(("call", "after"), [("pwrite", 8), ("fsync", 0), ("replace", 0)])
def test_a_full_disk_leaves_the_earlier_one(
    call: str, after: int, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of some shard: the folder is what it was, and no thread is left that reads on."""
    made = tmp_path / "made"
    bombus.convert_checkpoint(tiny("llama", "bf16", **SIZES), made, max_shard_bytes=20_000)
    before, threads = contents(made), threading.active_count()
    fail(monkeypatch, call, OSError(errno.ENOSPC, "No space left on device"), after=after)
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.convert_checkpoint(tiny("llama", "bf16", seed=1, **SIZES), made, max_shard_bytes=20_000, progress=False)
    assert str(caught.value).endswith(
        ".safetensors: file: could not be written: No space left on device. "
        "Check the free space and the permissions of the folder"
    )
    monitors = [thread for thread in threading.enumerate() if isinstance(thread, TMonitor)]
    assert threading.active_count() - len(monitors) <= threads
    assert contents(made) == before
    assert open_files(made) == []


def test_a_tokenizer_that_cannot_be_read_is_said_first(llama: Path, tmp_path: Path) -> None:
    """Before minutes of conversion: one outside the folder, and one that the system does not give."""
    (llama / "tokenizer.json").unlink()
    (tmp_path / "elsewhere").write_text("{}")
    (llama / "tokenizer.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(bombus.CheckpointError, match="is a link out of the folder"):
        bombus.convert_checkpoint(llama, tmp_path / "made")
    (llama / "tokenizer.json").unlink()
    path = llama / "merges.txt"
    path.write_text("a b")
    real = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self.name == path.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.convert_checkpoint(llama, tmp_path / "made")
    assert str(caught.value) == f"{path}: file: cannot be read: Permission denied"
    assert not (tmp_path / "made").exists()
    bombus.convert_checkpoint(llama, tmp_path / "made")
    assert (tmp_path / "made" / "merges.txt").read_text() == "a b"
    assert "tokenizer.json" not in names(tmp_path / "made")
