"""How often programs are compiled: once for any settings, ahead of time, and not again by a second process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bombus
from bombus.generation import engine
from bombus.generation.engine import Run
from bombus.generation.loop import Programs, start_programs
from bombus.generation.request import make_request

SETTINGS = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 2,
    "min_length": 6,
    "suppress_tokens": [4],
    "begin_suppress_tokens": [5, 6],
    "forced_eos_token_id": 9,
    "forced_tokens": {1: 8},
    "bad_words_ids": [[3], [1, 2, 3]],
    "sequence_bias": {(1, 2): -3.0},
    "logit_bias": {7: 1.5},
    "stop_token_ids": [11, 12],
    "seed": 3,
    "logprobs": True,
    "top_logprobs": 5,
}


def test_any_mix_of_settings_is_one_program(loaded: bombus.LoadedModel, compilations: list[str]) -> None:
    """Each setting alone, and all of them at once, on what a plain greedy call has compiled."""
    plain = bombus.generate_tokens(loaded, [[1, 2]], max_new_tokens=12)[0]
    jnp.arange(3) + 1  # whatever else this process compiles lazily
    compilations.clear()
    results = {
        name: bombus.generate_tokens(loaded, [[1, 2]], max_new_tokens=12, **{name: value})[0]
        for name, value in SETTINGS.items()
    }
    bombus.generate_tokens(loaded, [[1, 2, 3]], max_new_tokens=11, **SETTINGS)
    assert compilations == []
    assert results["forced_tokens"].tokens[1] == 8
    assert results["forced_eos_token_id"].tokens[-1] == 9
    assert results["seed"].tokens == plain.tokens  # greedy
    assert results["do_sample"].tokens != plain.tokens


def test_one_compilation_a_bucket(loaded: bombus.LoadedModel, compilations: list[str]) -> None:
    """Prompts from 1 to 64 tokens are four buckets, of two programs each; the same again are none."""
    bombus.generate_tokens(loaded, [[1]], max_new_tokens=3)
    compilations.clear()
    for size in (1, 9, 16, 17, 30, 32, 33, 48):
        bombus.generate_tokens(loaded, [[1] * size], max_new_tokens=3)
    assert len(compilations) == 2 * 2
    compilations.clear()
    for size in (2, 20, 40):
        bombus.generate_tokens(loaded, [[2] * size], max_new_tokens=3)
    assert compilations == []


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}], ids=["plain", "lookup"])
def test_the_first_token_does_not_wait_for_the_loop(
    loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    """It is there while the loop is still compiled; where it is the only one, nobody asks for the loop."""
    pending: list[Future[jax.stages.Compiled]] = []

    def start(*arguments: Any) -> Programs:
        programs = start_programs(*arguments)
        pending.append(Future())
        return replace(programs, loop=pending[-1])

    expected = bombus.generate_tokens(loaded, [[1, 2, 3]], max_new_tokens=9, **options)[0].tokens
    monkeypatch.setattr(engine, "start_programs", start)
    request = make_request(loaded, [[1, 2, 3]], {"max_new_tokens": 9, **options}, has_text=False)
    run = Run(loaded, request)
    pieces = run.pieces(4)
    next(pieces)
    assert run.rows[0].tokens == expected[:1]
    assert not pending[0].done()
    pending[0].set_result(
        start_programs(loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan).decode
    )
    list(pieces)
    assert run.rows[0].tokens == expected
    timings = run.results()[0].timings
    assert timings is not None
    assert timings.time_to_first_token + timings.loop_compile_seconds <= timings.seconds
    assert bombus.generate_tokens(loaded, [[1, 2, 3]], max_new_tokens=1, **options)[0].tokens == expected[:1]


def test_warmup_leaves_nothing_to_compile(loaded: bombus.LoadedModel, compilations: list[str]) -> None:
    """What was asked for is compiled, and named by its sizes; calls of those sizes compile nothing."""
    seconds = bombus.warmup(loaded, prompt_tokens=[5, 70], batch_sizes=[2], max_new_tokens=20, cache_format="int8")
    assert list(seconds) == [(2, 16), (2, 80)]
    assert all(value > 0 for value in seconds.values())
    jnp.arange(3) + 1
    compilations.clear()
    options = {"max_new_tokens": 20, "cache_format": "int8"}
    bombus.generate_tokens(loaded, [[1] * 3, [2]], **options)
    bombus.generate_tokens(loaded, [[1] * 66, [2]], temperature=1.0, **options)
    assert compilations == []
    again = bombus.warmup(loaded, prompt_tokens=70, batch_sizes=2, **options)
    assert list(again) == [(2, 80)]
    assert compilations == []


SCRIPT = """
import json, sys, jax, bombus
events = {"hit": 0, "miss": 0}
jax.monitoring.register_event_listener(lambda event, **_: [
    events.__setitem__(kind, events[kind] + 1)
    for kind, name in {"hit": "cache_hits", "miss": "cache_misses"}.items()
    if event == f"/jax/compilation_cache/{name}"])
folder = bombus.use_compilation_cache(sys.argv[2])
traced, apply = [], bombus.Model.apply
bombus.Model.apply = lambda *arguments, **options: [traced.append(1), apply(*arguments, **options)][1]
loaded = bombus.load_model(sys.argv[1])
tokens = bombus.generate_tokens(loaded, [[1, 2, 3]], max_new_tokens=5, stop_token_ids=())[0].tokens
print(json.dumps({"folder": str(folder), "tokens": tokens, "traced": len(traced), **events}))
"""


def test_a_second_process_compiles_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """It finds every program of the first one in the folder, traces none, and writes the same tokens."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true"}
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", SCRIPT, str(tiny("qwen3")), str(tmp_path / "compiled")]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
    first, second = found
    assert first["folder"] == str(tmp_path / "compiled")
    assert first["miss"] > 2
    assert second["miss"] == 0
    # The programs of generation are asked for nowhere else.
    assert second["hit"] == first["miss"] - 2 > 2
    assert first["traced"] == 2
    assert second["traced"] == 0
    assert second["tokens"] == first["tokens"]


def test_the_cache_of_programs_has_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$BOMBUS_CACHE/compiled, made when something is written; what JAX was told before stays."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path))
        assert bombus.use_compilation_cache() == tmp_path / "compiled"
        assert not (tmp_path / "compiled").exists()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
        monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path / "other"))
        assert bombus.use_compilation_cache() == tmp_path / "compiled"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
