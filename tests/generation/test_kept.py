"""Compiled programs that are kept: found by the next process, and never another's."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import bombus
from bombus.generation import kept, loop
from bombus.generation.kept import NotPlain, plain, program_key
from bombus.generation.loop import NEXT_TOKEN, compile_programs
from bombus.generation.request import make_request
from bombus.layers import CacheFormat
from bombus.loader.compiled import keep_bytes, kept_folder, read_kept, source_digest
from bombus.policies.formats import find_format

OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "stop_token_ids": ()}
PROMPT = [[1, 2, 3]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where JAX keeps what it compiles, so that each program is compiled once for all of these tests."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def folder(compiled: Path) -> Iterator[Path]:
    """Where programs are kept, empty; JAX's settings are as they were after the test."""
    names = [name for name in jax.config.values if "compilation_cache" in name or "persistent_cache" in name]
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    bombus.use_compilation_cache(compiled)
    yield compiled / "programs"
    if (compiled / "programs").is_dir():
        shutil.rmtree(compiled / "programs")
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    loop._compiled.cache_clear()


def written(loaded: bombus.LoadedModel, **options: Any) -> list[int]:
    """The tokens of programs that a process has which has just begun; all that it keeps is there then."""
    loop._compiled.cache_clear()
    request = make_request(loaded, PROMPT, {**OPTIONS, **options}, has_text=False)
    compile_programs(loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan)
    return bombus.generate_tokens(loaded, PROMPT, **{**OPTIONS, **options})[0].tokens


def trace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, tracing the model fails."""

    def apply(*_: Any, **__: Any) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr(bombus.Model, "apply", apply)


def test_kept_programs_write_the_same_and_are_not_traced(
    loaded: bombus.LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that are traced as ever; another room for tokens is another program."""
    options = {"temperature": 1.0, "seed": 3, "logprobs": True}
    expected = {"kept": written(loaded, **options)}
    assert sorted(path.name.partition("-")[2] for path in folder.iterdir()) == ["decode", "prefill"]
    with monkeypatch.context() as patch:
        trace_nothing(patch)
        expected["read"] = written(loaded, **options)
        with pytest.raises(AssertionError, match="traced"):
            written(loaded, **{**options, "max_new_tokens": 40})
    jax.config.update("jax_enable_compilation_cache", False)
    assert kept_folder() is None
    expected["traced"] = written(loaded, **options)
    assert expected["read"] == expected["kept"] == expected["traced"]


SEARCHES = {
    "sampling": {"cache_format": CacheFormat(keys="int8", values="int4", recent=4)},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_every_way_of_finding_tokens_can_be_kept(
    loaded: bombus.LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """With its state's fields and static numbers."""
    expected = written(loaded, **options)
    trace_nothing(monkeypatch)
    assert written(loaded, **options) == expected


def test_a_damaged_file_is_made_again(
    loaded: bombus.LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it is not looked at: it is traced as if there were none. So it is where a whole file is of another
    format, or of a program with other arguments."""
    expected = written(loaded)
    other, path = sorted(folder.iterdir(), key=lambda path: path.name.partition("-")[2])
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for contents in (b"", whole[:-1], bytes(changed), other.read_bytes()):
        path.write_bytes(contents)
        assert read_kept(path.name) is None
    assert written(loaded) == expected
    assert read_kept(path.name) is not None
    for contents in (b"of another format", pickle.dumps(("of", "another", "kind"))):
        keep_bytes(path.name, contents)
        assert read_kept(path.name) == contents
        assert written(loaded) == expected
        assert read_kept(path.name) != contents
    trace_nothing(monkeypatch)
    assert written(loaded) == expected


def test_a_folder_that_cannot_be_written_keeps_nothing(loaded: bombus.LoadedModel, folder: Path) -> None:
    """And is no error."""
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in its place")
    try:
        assert len(written(loaded)) == 9
        assert folder.read_text() == "a file in its place"
    finally:
        folder.unlink()


def test_the_state_is_given_away_and_no_weight_is_copied(loaded: bombus.LoadedModel, folder: Path) -> None:
    """A kept program needs what a traced one needs: an argument for every array, and nothing beside them of a weight's
    size; its state is updated in place."""
    request = make_request(loaded, PROMPT, OPTIONS, has_text=False)
    arguments = (loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    for _ in range(2):
        loop._compiled.cache_clear()
        programs = compile_programs(*arguments)
        tokens, mask, done = request.padded()
        state = programs.prefill(loaded.params, tokens, mask, done, request.call)
        given = jax.tree.leaves((loaded.params, state, done, request.call, np.int32(0)))
        memory = programs.decode.memory_analysis()
        assert memory.temp_size_in_bytes < weights // 4
        assert memory.alias_size_in_bytes >= state.cache.nbytes
        assert memory.argument_size_in_bytes <= sum(np.asarray(leaf).nbytes for leaf in given) + 64 * len(given)
        assert len(jax.tree.leaves(programs.decode.args_info)) == len(given)
        after = programs.decode(loaded.params, state, done, request.call, np.int32(1))
        assert state.cache.layers[0].keys.codes.is_deleted()
        assert int(after.history.step) == 1


def test_the_prompt_is_read_before_the_loop_is_there(
    loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is asked for when the first program has been started."""
    request = make_request(loaded, PROMPT, OPTIONS, has_text=False)
    programs = compile_programs(loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan)
    order = []

    class Waiting(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            order.append("loop")
            return programs.decode

    def prefill(*arguments: Any) -> Any:
        order.append("prefill")
        return programs.prefill(*arguments)

    monkeypatch.setattr(loop, "_compiled", lambda *_: replace(programs, prefill=prefill, loop=Waiting()))
    assert len(bombus.generate_tokens(loaded, PROMPT, **OPTIONS)[0].tokens) == 9
    assert order[:2] == ["prefill", "loop"]


def keys(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The key of a program and of others, by what is different."""
    request = make_request(loaded, PROMPT, OPTIONS, has_text=False)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        (loaded.params, request.call),
    )
    model, plan, spec = loaded.model, request.plan, loaded.spec
    found = {
        "same": program_key(model, plan, arguments),
        "again": program_key(replace(model), replace(plan), arguments),
    }

    def add(name: str, model: bombus.Model = model, plan: Any = plan, arguments: Any = arguments) -> None:
        found[name] = program_key(model, plan, arguments)

    add("policy", model=bombus.apply_policy(model, bombus.create_policy(compute="bf16"), on_conflict="replace"))
    add("spec", model=replace(model, spec=replace(spec, max_positions=spec.max_positions + 1)))
    add("formats", model=replace(model, formats=dict.fromkeys(model.formats, find_format("f32"))))
    add("main type", model=replace(model, main_type=np.dtype(np.float16)))
    add("room", plan=replace(plan, new_tokens=plan.new_tokens + 16))
    add("chunk", plan=replace(plan, chunk=8))
    add("cache", plan=replace(plan, cache_format=CacheFormat(keys="int8")))
    add("search", plan=replace(plan, strategy=replace(NEXT_TOKEN, lookback=1)))
    add("shape", arguments=(arguments, jax.ShapeDtypeStruct((1, 16), jnp.int32)))
    add("type", arguments=(arguments, jax.ShapeDtypeStruct((1, 16), jnp.bool_)))
    with jax.default_matmul_precision("highest"):
        add("setting")
    for variable in ("XLA_FLAGS", "BOMBUS_KERNELS_OF_TOMORROW"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "--else")
            add(variable)
    for name in ("jax", "jaxlib", "flax", "np"):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(kept, name), "__version__", "0.0")
            patch.setattr(kept, "_versions", kept._versions.__wrapped__)
            add(f"{name}'s version")
    with monkeypatch.context() as patch:
        patch.setattr(kept, "source_digest", lambda folders: "of other sources")
        patch.setattr(kept, "_versions", kept._versions.__wrapped__)
        add("sources")
    with monkeypatch.context() as patch:
        patch.setattr("bombus.kernels.native.kernels_in_use", lambda: "abacus")
        add("kernels")
    return found


def test_a_key_is_of_everything_that_decides(
    loaded: bombus.LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = keys(loaded, monkeypatch)
    assert found["same"] == found.pop("again")
    assert None not in found.values()
    assert len(set(found.values())) == len(found) == 20


def double(logits_BV: jax.Array, history: bombus.History) -> jax.Array:
    """A user's processor."""
    return logits_BV * 2


def test_what_no_key_can_tell_is_not_kept(loaded: bombus.LoadedModel, folder: Path) -> None:
    """A user's functions and classes, arrays elsewhere, another device: they are traced, and nothing is written."""
    with_function = make_request(loaded, PROMPT, {**OPTIONS, "processors": [double]}, has_text=False)
    assert program_key(loaded.model, with_function.plan, ()) is None

    class Own(type(loaded.spec)):
        pass

    plan = make_request(loaded, PROMPT, OPTIONS, has_text=False).plan
    spec = Own(**{field.name: getattr(loaded.spec, field.name) for field in fields(loaded.spec)})
    assert program_key(replace(loaded.model, spec=spec), plan, ()) is None
    assert program_key(loaded.model, plan, ()) is not None
    try:
        jax.config.update("jax_default_device", jax.devices()[0])
        assert program_key(loaded.model, plan, ()) is None
    finally:
        jax.config.update("jax_default_device", None)
    assert written(loaded, processors=[double])
    assert not folder.exists()


@dataclass(frozen=True)
class Theirs:
    """A user's dataclass."""

    number: int = 1


def test_plain_data() -> None:
    """Different values are different texts; what is not ours alone is refused."""
    values: list[Any] = [
        *(None, True, 1, 1.0, -0.0, 0.0, float("nan"), "1", (1,), [1], ((1,),), {"1": 1}, {1: 1}, {"1": 1, "2": 1}),
        *(MappingProxyType({"1": 1}), np.dtype(np.float32), jnp.dtype(jnp.bfloat16), CacheFormat(), NEXT_TOKEN),
        *(find_format("int4"), find_format("int4(group=64)"), loop.read_last),
    ]
    texts = [json.dumps(plain(value)) for value in values]
    assert len(set(texts)) == len(texts)
    unknown: list[Any] = [lambda: 1, double, Theirs(), Theirs, np.float32(1), np.ones(2), {1}, object()]
    bound = [partial(loop.read_last), loop.read_last.__get__(1)]
    for value in [*unknown, *bound, (1, [{"a": Theirs()}]), {Theirs(): 1}]:
        with pytest.raises(NotPlain):
            plain(value)


def test_a_digest_of_sources_is_of_what_is_in_them(tmp_path: Path) -> None:
    """Of Python files and libraries: contents and names, and no times."""

    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "package"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return source_digest([str(folder)])

    same = digest(a_py="1", b_so="2")
    assert digest(b_so="2", a_py="1", c_txt="3") == same
    others = [digest(a_py="2", b_so="2"), digest(a_py="1", b_so="1"), digest(c_py="1", b_so="2"), digest(a_py="12")]
    assert len({same, *others}) == 5
