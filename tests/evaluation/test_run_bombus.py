"""Bombus as a contender: the tokens are generate's, the bytes are the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bombus
from bombus.evaluation import Workload
from bombus.evaluation.run_bombus import BombusContender, step_bytes
from bombus.loader.plan import Entry

WORK = Workload(rows=3, prompt_tokens=5, new_tokens=6)


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With settings that would choose other tokens."""
    made = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny("qwen3", "f8_e4m3fn", preset="original", num_blocks=1), made)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": list(range(500))}
    (made / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    return made


@pytest.fixture(scope="module")
def contender(folder: Path) -> BombusContender:
    made = BombusContender(repo=str(folder), policy=None, preserve_source_types=True)
    facts = made.load()
    loaded = bombus.load_model(folder, preserve_source_types=True)
    assert facts["weight_bytes"] == loaded.report.nbytes
    assert facts["versions"].startswith(f"bombus {bombus.__version__}, jax ")
    prepared = made.prepare(WORK)
    # 16 prompt slots and 16 new ones; 5 + 3 tokens of each row half way.
    cache = loaded.model.init_cache(3, 32)
    assert prepared["cache_bytes"] == cache.nbytes
    assert prepared["step_bytes"] == loaded.report.nbytes + 3 * 8 * cache.bytes_per_token
    return made


def test_its_tokens_are_those_of_generate(contender: BombusContender, folder: Path) -> None:
    """Greedy, and no stop id of the repository ends a row."""
    loaded = bombus.load_model(folder, preserve_source_types=True)
    expected = bombus.generate_tokens(
        loaded, WORK.prompts(loaded.spec.vocab_size), generation_config=bombus.GenerationConfig(max_new_tokens=6)
    )
    assert contender.run(WORK, 6).tokens == [row.tokens for row in expected]
    short = contender.run(WORK, 1)
    assert short.tokens == [row.tokens[:1] for row in expected]
    assert short.first_seconds > short.decode_seconds


def test_dispatch_takes_the_steps_that_there_are(contender: BombusContender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 5 steps after the first token by itself, then all of them at once."""
    asked = []
    go_on = BombusContender._go_on

    def spy(self: BombusContender, workload: Workload, state: object, until: int) -> object:
        asked.append(until)
        return go_on(self, workload, state, until)

    monkeypatch.setattr(BombusContender, "_go_on", spy)
    assert isinstance(contender.dispatch_seconds(WORK), float)
    assert asked == [2, 3, 4, 5, 6, 6]
    one = Workload(rows=3, prompt_tokens=5, new_tokens=1)
    assert contender.dispatch_seconds(one) == 0.0


def entry(path: str, *shape: int) -> Entry:
    return Entry(path=path, action="cast", shape=shape, format=bombus.find_format("bf16"), computed=None)  # type: ignore[arg-type]


def test_a_step_reads_what_it_needs() -> None:
    """2 bytes a value: a tied table is the head, and read as a whole; another is looked up, a row for each user."""
    table, kernel = entry("embedder.token_embedding.embedding", 100, 8), entry("decoder.blocks.0.ffn.kernel", 10, 8)
    assert step_bytes([table, kernel], 4, 0) == 2 * (800 + 80)
    head = entry("language_modeling_head.output.kernel", 100, 8)
    assert step_bytes([table, kernel, head], 4, 0) == 2 * (4 * 8 + 80 + 800)
    assert step_bytes([table, head], 200, 0) == 2 * (800 + 800), "no row twice"
    positions = entry("embedder.position_embedding.embedding", 50, 8)
    assert step_bytes([table, positions], 4, 0) == 2 * (800 + 4 * 8)


def test_a_step_reads_the_experts_that_are_chosen() -> None:
    """2 of 8 for one row; for two a share of 1 - (3/4)^2 is expected."""
    stack = entry("decoder.blocks.0.ffn.experts.gate.kernel", 8, 4, 4)
    assert step_bytes([stack], 1, 2) == 0.25 * 256
    assert step_bytes([stack], 2, 2) == 0.4375 * 256
