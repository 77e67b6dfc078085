"""Contenders of a bench do the same work: the same greedy tokens of the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bombus.evaluation import Workload, export_gguf
from bombus.evaluation.run_bombus import BombusContender

pytestmark = pytest.mark.parity

WORK = Workload(rows=2, prompt_tokens=20, new_tokens=24)
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"attention_bias": False, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Path:
    return tiny(request.param, "f32", **MODELS[request.param])


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[BombusContender, dict[str, Any], list[list[int]]]:
    """The contender, what it says of a step, and its tokens."""
    made = BombusContender(repo=str(folder))
    made.load()
    prepared = made.prepare(WORK)
    tokens = made.run(WORK, WORK.new_tokens).tokens
    assert len({*tokens[0]}) > 5, "not one token over and over"
    return made, dict(prepared), tokens


@pytest.fixture
def _threads() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_transformers_does_the_same(folder: Path, ours: Any) -> None:
    pytest.importorskip("transformers")
    from bombus.evaluation.run_transformers import TransformersContender

    contender, prepared, tokens = ours
    theirs = TransformersContender(folder=str(folder), threads=1)
    assert theirs.load()["weight_bytes"] == contender._loaded.report.nbytes
    assert theirs.prepare(WORK)["step_bytes"] == prepared["step_bytes"]
    assert theirs.run(WORK, WORK.new_tokens).tokens == tokens


@pytest.mark.usefixtures("_threads")
def test_transformers_reads_block_fp8_in_bf16(tiny: Callable[..., Path]) -> None:
    pytest.importorskip("transformers")
    from bombus.evaluation.run_transformers import TransformersContender

    # Of whole tiles: it takes no partial ones.
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_heads": 4, "head_dim": 64}
    folder = tiny("qwen3", "f8_e4m3fn", **sizes)
    theirs, wide = TransformersContender(folder=str(folder), threads=1), BombusContender(repo=str(folder))
    # Not the same tokens: two roundings to bf16 on the way differ. What it loads is no FP8.
    assert theirs.load()["weight_bytes"] == wide.load()["weight_bytes"]
    assert theirs.prepare(WORK)["step_bytes"] == wide.prepare(WORK)["step_bytes"]
    assert len(theirs.run(WORK, 3).tokens[0]) == 3


def llama_cpp(folder: Path, file: Path, type: str, *, tied: bool) -> Any:
    """A contender with that folder's weights in a GGUF file."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from bombus.evaluation.run_llama_cpp import LlamaCppContender

    return LlamaCppContender(file=str(export_gguf(folder, file, type)), tied_head=tied, threads=1)


def test_llama_cpp_does_the_same(folder: Path, ours: Any, tmp_path: Path) -> None:
    """The second time with a cache that has been used."""
    contender, prepared, tokens = ours
    tied = contender._loaded.spec.tie_word_embeddings
    theirs = llama_cpp(folder, tmp_path / "x.gguf", "F32", tied=tied)
    facts = theirs.load()
    assert facts["weight_bytes"] == contender._loaded.report.nbytes
    cache = 2 * (20 + 24 / 2) * (2 * 2 * 2 * 48)  # values of 32 tokens of 2 rows: keys and values, 2 layers, 2 heads
    read = prepared["step_bytes"] - 4 * cache
    assert theirs.prepare(WORK)["step_bytes"] == pytest.approx(read + 2 * cache), "ours in float32, theirs in float16"
    for _ in range(2):
        assert theirs.run(WORK, WORK.new_tokens).tokens == tokens


@pytest.mark.parametrize(("type", "bits"), [("BF16", 16), ("Q8_0", 10.15)])
def test_llama_cpp_does_the_same_in_fewer_bits(data: Path, tmp_path: Path, type: str, bits: float) -> None:
    """A trained model, whose tokens lead by more than the rounding. Its rows of 172 are no blocks of Q8_0."""
    folder = data / "stories260K-hf"
    ours = BombusContender(repo=str(folder))
    nbytes = ours.load()["weight_bytes"]
    ours.prepare(WORK)
    theirs = llama_cpp(folder, tmp_path / "x.gguf", type, tied=ours._loaded.spec.tie_word_embeddings)
    assert theirs.load()["weight_bytes"] == pytest.approx(nbytes * bits / 32, rel=0.02)
    theirs.prepare(WORK)
    found, expected = (one.run(WORK, 8).tokens for one in (theirs, ours))
    assert found == expected
