"""The cache of converted parameters: the second load reads and converts nothing, and gives the same bits."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import convention_cases
import jax
import numpy as np
import pytest
from cached import REMEDY, SIZES, count_conversions, forbid_reading, key_of, not_mapped
from conventions import write_convention
from converted import as_bytes
from failing_system import fail, names
from safetensors.numpy import load_file, save_file

import bombus
from bombus.loader.cache import cache_folder, remove_cached
from bombus.models.model import flat
from bombus.policies.formats import FORMATS

# Every storage format: the second word is of a layer of the one block.
FORMATS_OF = {
    "one": {
        "query": "f16",
        "key": "f8_e4m3fn(tile=16x24)",
        "value": "f8_e5m2",
        "self_attention.output": "bfp8",
        "gate": "int8(group=16, scale=f16)",
        "intermediate": "int4(group=16, zero_points)",
        "ffn.output": "bfp4(axis=out)",
        "token_embedding": "int4(scale=f32)",
    },
    "other": {
        "query": "mxfp8(element=f8_e5m2)",
        "key": "mxfp4(scale_rule=ceil)",
        "value": "nvfp4",
        "self_attention.output": "f32",
        "gate": "f8_e4m3fn(tile=tensor, scale=bf16)",
        "intermediate": "f8_e4m3fn(scale=e8m0)",
        "ffn.output": "bf16",
        "token_embedding": "mxfp4",
    },
}
LAYOUTS = (
    *("fp8", "fp8, scale, e8m0", "fp8, bytes of e8m0", "fp8, e5m2", "fp8, an embedding", "fp8, shards"),
    *("mxfp8, bytes", "alone, channels", "alone, a tensor, e5m2", "compressed, mixed", "fbgemm_fp8", "modelopt, NVFP4"),
    *("mxfp4", "mxfp4, alone, partial blocks", "gptq", "gptq, 8 bits", "awq"),
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def twice(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> bombus.LoadedModel:
    """A model from the cache, where a first load has put it; both equal a load without one, bit for bit."""
    plain = as_bytes(bombus.load_model(folder, **options).params)
    assert as_bytes(bombus.load_model(folder, cache=cache, **options).params) == plain
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        again = bombus.load_model(folder, cache=cache, **options)
    assert as_bytes(again.params) == plain
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(again.params))
    assert jax.tree.structure(again.params) == jax.tree.structure(again.model.abstract_params)
    assert len(names(cache)) == 1
    return again


def test_every_storage_format_is_there() -> None:
    assert {format.split("(")[0] for case in FORMATS_OF.values() for format in case.values()} == set(FORMATS)


@pytest.mark.parametrize("case", FORMATS_OF)
def test_what_a_policy_made(case: str, tiny: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every format, of sizes that no tile divides."""
    sizes = convention_cases.SIZES["odd"]
    folder = tiny("qwen3", "bf16", num_blocks=1, vocab_size=34, **sizes)
    policy = {f"*{layer}.*": format for layer, format in FORMATS_OF[case].items()}
    again = twice(folder, cache, monkeypatch, policy=policy)
    assert {str(format) for format in again.model.formats.values()} >= set(FORMATS_OF[case].values())


@pytest.mark.parametrize("preserve", [True, False], ids=["kept", "dequantized"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "two"])
def test_fp8(
    tied: bool, preserve: bool, tiny: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("qwen3", "f8_e4m3fn", tie_word_embeddings=tied, **SIZES)
    twice(folder, cache, monkeypatch, preserve_source_types=preserve)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_other_conventions_keep(
    name: str, tiny: Callable[..., Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convention = convention_cases.CASES[name]
    architecture = "llama" if convention.base == "eights" else "qwen3"
    base = tiny(architecture, "f32", num_blocks=1, vocab_size=34, **convention_cases.SIZES[convention.base])
    folder = write_convention(convention, base, tmp_path / "checkpoint").folder
    twice(folder, cache, monkeypatch, preserve_source_types=True)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere arrays are copied to the device")
def test_on_cpu_the_arrays_are_the_pages_of_the_file(tiny: Callable[..., Path], cache: Path) -> None:
    """All of which XLA can take over, which are all but a few scales; they can be donated, and the file stays."""
    folder = tiny("qwen3", "f8_e4m3fn")
    for _ in range(2):  # also those that were just made
        loaded = bombus.load_model(folder, cache=cache, preserve_source_types=True)
        (path,) = cache.iterdir()
        copied = not_mapped(loaded.params, path)
        assert all(array.nbytes % 64 for array in copied.values())
        assert sum(array.nbytes for array in copied.values()) < 0.002 * loaded.report.nbytes
    before = path.read_bytes()
    step = jax.jit(lambda params: jax.tree.map(jax.numpy.zeros_like, params), donate_argnums=0)
    jax.block_until_ready(step(loaded.params))
    assert path.read_bytes() == before


def test_the_model_computes_the_same(tiny: Callable[..., Path], cache: Path) -> None:
    folder, tokens = tiny("qwen3", "f8_e4m3fn", **SIZES), np.array([[5, 9, 11]], np.int32)
    plain = bombus.load_model(folder)
    bombus.load_model(folder, cache=cache)
    again = bombus.load_model(folder, cache=cache)
    np.testing.assert_array_equal(
        *(jax.jit(loaded.model.apply)(loaded.params, tokens).logits for loaded in (plain, again))
    )
    assert again.report.to_json() | {"seconds": 0} == plain.report.to_json() | {"seconds": 0}


def header_only(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: 8 + int.from_bytes(raw[:8], "little")])


def other_shape(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file({**tensors, name: tensors[name].T.copy()}, path)


def other_type(path: Path) -> None:
    save_file({name: tensor.view(np.uint16) for name, tensor in load_file(path).items()}, path)


def without_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not safetensors at all"),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "header only": header_only,
    "other shape": other_shape,
    "other type": other_type,
    "one missing": without_one,
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(
    damage: str, tiny: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama", "bf16", **SIZES)
    plain = as_bytes(bombus.load_model(folder, cache=cache).params)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    DAMAGE[damage](path)
    made = count_conversions(monkeypatch)
    for _ in range(2):
        assert as_bytes(bombus.load_model(folder, cache=cache).params) == plain
    assert made == [path.stem]
    assert path.read_bytes() == whole
    assert names(cache) == [path.name]


def test_parameters_in_use_outlive_the_file(tiny: Callable[..., Path], cache: Path) -> None:
    """It is replaced, removed, made again: it is never written into, which would change them."""
    folder = tiny("llama", "bf16", **SIZES)
    loaded = bombus.load_model(folder, cache=cache)
    (path,) = cache.iterdir()
    expected, inode = as_bytes(loaded.params), path.stat().st_ino
    other = path.with_name("other")
    other.write_bytes(b"damaged")
    os.replace(other, path)
    again = bombus.load_model(folder, cache=cache)
    assert as_bytes(loaded.params) == as_bytes(again.params) == expected
    assert path.stat().st_ino != inode
    remove_cached(folder=cache)
    assert names(cache) == []
    assert as_bytes(loaded.params) == as_bytes(again.params) == expected


@pytest.fixture
def opened(cache: Path) -> Iterator[list[tuple[str, str]]]:
    """(file, how) for everything in the cache that is opened to write or cut short, by whatever call."""
    found: list[tuple[str, str]] = []
    listening = [True]

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if not listening or event not in ("open", "os.truncate"):
            return
        writes = event == "os.truncate" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC))
        if writes and str(arguments[0]).startswith(str(cache)):
            found.append((Path(str(arguments[0])).name, event))

    sys.addaudithook(listen)  # for the life of the process, hence `listening`
    yield found
    listening.clear()


def test_nobody_writes_into_a_file_of_the_cache(
    tiny: Callable[..., Path], cache: Path, opened: list[tuple[str, str]]
) -> None:
    """Only into new ones under other names, one for each time that parameters are made."""
    folder = tiny("llama", "bf16", **SIZES)
    for _ in range(3):
        bombus.load_model(folder, cache=cache)
        (path,) = cache.iterdir()
        path.with_name("other").write_bytes(b"damaged")
        os.replace(path.with_name("other"), path)
    ours = [name for name, _ in opened if name.startswith(f".{path.name}.")]
    assert len(ours) == len(set(ours)) == 3
    assert not [name for name, _ in opened if not name.endswith(".partial") and name != "other"]


def test_it_is_looked_for_where_the_user_says(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BOMBUS_CACHE, else the system's folder for caches, else ~/.cache; a folder that is given may begin with ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("BOMBUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "bombus"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bombus"
    monkeypatch.setenv("BOMBUS_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home" / "own"
    folder = tiny("llama", "bf16", **SIZES)
    for cache, place in (("auto", "own"), ("~/given", "given"), (tmp_path / "home" / "path", "path")):
        bombus.load_model(folder, cache=cache)
        assert [Path(name).suffix for name in names(tmp_path / "home" / place)] == [".safetensors"]
    monkeypatch.chdir(tmp_path)
    bombus.load_model(folder)
    assert names(tmp_path) == ["home"]


def test_a_cache_that_cannot_be_written(
    tiny: Callable[..., Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama", "bf16", **SIZES)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.load_model(folder, cache=file / "cache")
    assert str(caught.value) == (
        f"{file / 'cache'}: folder: cannot be made: Not a directory. Check the permissions of the folder that it is "
        "to be in, or give another"
    )
    key = key_of(folder)
    for call, number, text in (
        ("open", errno.EACCES, "Permission denied"),
        ("pwrite", errno.ENOSPC, "No space left on device"),
    ):
        with monkeypatch.context() as patch:
            fail(
                patch,
                call,
                OSError(number, text),
                when=lambda file, *_: type(file) is int or cache in Path(file).parents,
            )
            with pytest.raises(bombus.CheckpointError) as caught:
                bombus.load_model(folder, cache=cache)
        path = cache / f"{key}.safetensors"
        assert str(caught.value) == f"{path}: file: could not be written: {text}. {REMEDY}"
        assert names(cache) == []
    assert flat(bombus.load_model(folder, cache=cache).params)
    assert names(cache) == [f"{key}.safetensors"]
