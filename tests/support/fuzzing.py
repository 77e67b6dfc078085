"""Damaged files for the loader, made of whole ones: hypothesis chooses what to change, in the structure or in bytes.

Every target writes a file or a folder and reads it. What it may raise is an error of Bombus; anything else, a crash
or a hang is a finding. The tests run each target briefly, benchmarks/fuzz_loader.py as long as one likes.
"""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from meta_files import as_torch, meta_params, meta_tensors, write_meta
from quantized_files import compressed
from safetensors.numpy import save
from torch_files import legacy_file, storage, view

import bombus
from bombus.loader.checkpoint import read_headers
from bombus.loader.repository import open_repository
from bombus.loader.safetensors import read_header
from bombus.loader.torch_files import read_torch_header
from bombus.testing import tiny_checkpoint

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((4,), np.int8),
    "c": np.full((1, 1), 3, np.float16),
}
SIZES = {"preset": "original", "num_blocks": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 258}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8, "symmetric": False}
SECTIONS = (
    None,
    compressed(INT4, "pack-quantized", kv_cache_scheme={"num_bits": 8}),
    {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False, "sym": True},
    {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    {"quant_method": "bombus", "version": 1, "formats": {"model.embed_tokens": "int4(group=8)"}},
)


@dataclass(frozen=True)
class Target:
    """What damaged inputs are made of, and what reads them: `read(folder, input)`."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Path, Any], None]


def hostile() -> st.SearchStrategy[Any]:
    """Values that somebody forgot to think of."""
    numbers = st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**30, 0.5, 1e308, math.nan, math.inf])
    texts = st.sampled_from(["", "\x00", "../x", "/etc/passwd", "F32", "weight", "a" * 300, "\ud800", "re:("])
    plain = st.none() | st.booleans() | numbers | texts | st.integers() | st.text(max_size=8)

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)

    return st.recursive(plain, nested, max_leaves=6)


@st.composite
def changed_json(draw: st.DrawFn, whole: Any) -> Any:
    """A copy of a JSON value in which up to three places hold something else, are missing, or stand elsewhere."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(("replace", "replace", "remove", "copy", "rename")))
        if action == "replace":
            holder[key] = draw(hostile())
        elif action == "remove":
            del holder[key]
        elif action == "copy":
            other, name = draw(st.sampled_from(places))
            # The place may have been removed with what it was in.
            holder[key] = copy.deepcopy(other[name] if name in other or isinstance(name, int) else None)
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = holder.pop(key)
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes, some of which are others, missing, doubled, or followed by more."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        count = draw(st.integers(1, 16))
        action = draw(st.sampled_from(("set", "set", "flip", "cut", "remove", "double", "insert")))
        if action == "set":
            data[at : at + count] = draw(st.binary(min_size=1, max_size=8))
        elif action == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[at:]
        elif action == "remove":
            del data[at : at + count]
        elif action == "double":
            data[at:at] = data[at : at + count]
        else:
            data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


def targets(folder: Path) -> list[Target]:
    """All targets; `folder` gets the whole files that they begin with."""
    whole = save(TENSORS)
    length = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    tiny = tiny_checkpoint("qwen3", folder / "tiny", **SIZES)
    config = json.loads((tiny / "config.json").read_text())
    configs = st.sampled_from([config | ({"quantization_config": section} if section else {}) for section in SECTIONS])
    llama = tiny_checkpoint("llama", folder / "llama", "f32", **SIZES | {"hidden_size": 32})
    meta = write_meta(folder / "meta", meta_tensors(llama), meta_params(llama))
    params = meta_params(llama, use_scaled_rope=True, rope_theta=500000.0)
    generation = {"do_sample": True, "eos_token_id": [1, 2], "top_p": 0.9, "top_k": 5, "temperature": 0.5}
    shards = {f"model-0000{i}-of-00002.safetensors": save({name: TENSORS[name]}) for i, name in ((1, "a"), (2, "b"))}
    index = {"metadata": {"total_size": 28}, "weight_map": dict(zip("ab", shards, strict=True))}
    (folder / "shards").mkdir()
    for name, data in shards.items():
        (folder / "shards" / name).write_bytes(data)
    torch = as_torch({"a": TENSORS["a"], "b": TENSORS["a"].T})
    with zipfile.ZipFile(io.BytesIO(torch)) as archive:
        pickle = archive.read("archive/data.pkl")
        records = {name: archive.read(name) for name in archive.namelist() if not name.endswith("data.pkl")}
    old = legacy_file({"a": view(storage("0", "torch.FloatStorage", 6, None))}, {"0": TENSORS["a"]})
    return [
        Target("safetensors, header", changed_json(header), lambda to, value: _safetensors(to, value, rest)),
        Target("safetensors, bytes", changed_bytes(whole), _file(read_header, "x.safetensors")),
        Target("index", changed_json(index), lambda to, value: _index(folder / "shards", to, value)),
        Target("config", configs.flatmap(changed_json), lambda to, value: _config(tiny, to, value)),
        Target("params.json", changed_json(params), lambda to, value: _params(meta, to, value)),
        Target("generation config", changed_json(generation), _generation),
        Target("pickle", changed_bytes(pickle), lambda to, value: _pickle(to, value, records)),
        Target("zip archive", changed_bytes(torch), _file(read_torch_header, "x.bin")),
        Target("old torch file", changed_bytes(old), _file(read_torch_header, "x.bin")),
    ]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(what holds it, its key or index) of every value inside another."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _read_all(tensors: dict[str, Any]) -> None:
    for name, info in tensors.items():
        info.read(name)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _file(read: Callable[[Path], dict[str, Any]], name: str) -> Callable[[Path, bytes], None]:
    def run(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        _read_all(read(folder / name))

    return run


def _safetensors(folder: Path, header: Any, rest: bytes) -> None:
    text = _json(header)
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + rest)
    _read_all(read_header(folder / "x.safetensors"))


def _index(shards: Path, folder: Path, index: Any) -> None:
    _linked(shards, folder)
    (folder / "model.safetensors.index.json").write_bytes(_json(index))
    _read_all(read_headers(open_repository(folder)))


def _config(tiny: Path, folder: Path, config: Any) -> None:
    _linked(tiny, folder)
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "config.json").write_bytes(_json(config))
    bombus.load_plan(folder, strict=False)


def _params(meta: Path, folder: Path, params: Any) -> None:
    _linked(meta, folder)
    (folder / "params.json").unlink(missing_ok=True)
    (folder / "params.json").write_bytes(_json(params))
    bombus.load_plan(folder)


def _generation(folder: Path, config: Any) -> None:
    (folder / "generation_config.json").write_bytes(_json(config))
    bombus.load_generation_config(folder)


def _pickle(folder: Path, pickle: bytes, records: dict[str, bytes]) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"archive/data.pkl": pickle, **records}.items():
            archive.writestr(name, data)
    _file(read_torch_header, "x.bin")(folder, file.getvalue())


def _linked(source: Path, folder: Path) -> None:
    """The files of `source` in `folder`, without copying their bytes."""
    for path in source.iterdir():
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).hardlink_to(path)


def fresh(folder: Path) -> Path:
    """An empty folder in place of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
