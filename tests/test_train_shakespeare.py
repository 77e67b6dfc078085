"""The script that made the shipped model: a training that was stopped goes on as if it had not been."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers

import bombus
from bombus.models import build_model
from bombus.models.model import flat
from bombus.models.qwen3 import Qwen3Spec

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.once


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    # optax mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def text() -> str:
    """Speeches without sense, of which no two are alike."""
    random = np.random.default_rng(3)
    words = np.array(["to", "be", "or", "not", "the", "question", "whether", "nobler", "in", "mind", "suffer"])
    speeches = (" ".join(words[random.integers(0, len(words), 12)]) for _ in range(40))
    return "".join(f"{('HAMLET', 'OPHELIA')[i % 2]}:\n{speech}.\n\n" for i, speech in enumerate(speeches))


@pytest.fixture(scope="module")
def tokenizer(text: str) -> tokenizers.Tokenizer:
    from shakespeare_data import train_tokenizer

    return train_tokenizer(text, 280)


@pytest.fixture(scope="module")
def spec() -> Qwen3Spec:
    return Qwen3Spec(
        vocab_size=280,
        hidden_size=16,
        intermediate_size=24,
        num_blocks=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=64,
        tie_word_embeddings=True,
    )


def settings(**changes: Any) -> Any:
    from shakespeare_data import Settings

    return Settings(**{"steps": 4, "batch": 2, "context": 16, "dropout": 0.0, **changes})


def steps_of_a_pass(tokenizer: tokenizers.Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids) // 16 // 2


def test_batches_are_those_of_the_step_also_in_a_later_pass(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    from shakespeare_data import batches

    count = steps_of_a_pass(tokenizer, text) + 5
    whole = list(islice(batches(tokenizer, text, settings(noise=0.3)), count))
    for start in (1, count - 8, count - 2):
        rest = list(islice(batches(tokenizer, text, settings(noise=0.3), start=start), count - start))
        for expected, found in zip(whole[start:], rest, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_targets_are_the_next_tokens_and_every_pass_has_an_order_of_its_own(
    tokenizer: tokenizers.Tokenizer, text: str
) -> None:
    from shakespeare_data import batches

    count = steps_of_a_pass(tokenizer, text)
    drawn = list(islice(batches(tokenizer, text, settings(noise=0.0)), 2 * count))
    for inputs, targets in drawn:
        assert inputs.shape == (2, 16)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert all(tokenizer.decode(row.tolist()) in text for row in inputs)
    assert not np.array_equal(drawn[0][0], drawn[count - 1][0])
    first, second = ({row.tobytes() for inputs, _ in part for row in inputs} for part in (drawn[:9], drawn[count:][:9]))
    assert first != second


def test_noise_replaces_inputs_only(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    from shakespeare_data import batches

    pairs = list(islice(batches(tokenizer, text, settings(noise=0.25)), 10))
    replaced = np.mean([inputs[:, 1:] != targets[:, :-1] for inputs, targets in pairs])
    assert 0.15 < replaced < 0.35
    assert all(tokenizer.decode(row.tolist()) in text for _, targets in pairs for row in targets)


def test_dropout_cuts_every_pass_into_other_tokens(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    from shakespeare_data import batches

    # Which merges are left out has no seed: of one row it may be none.
    some = list(islice(batches(tokenizer, text, settings(dropout=0.5)), 10))
    cut = [tokenizer.decode(row.tolist()) for _, targets in some for row in targets]
    assert all(row in text for row in cut)
    assert sum(len(tokenizer.encode(row).ids) for row in cut) < 16 * len(cut)
    assert tokenizer.model.dropout is None, "the tokenizer that is shipped is changed"


def test_a_text_too_short_for_a_batch_is_said(tokenizer: tokenizers.Tokenizer) -> None:
    from shakespeare_data import batches

    with pytest.raises(SystemExit, match=r"^the text has 0 rows of 16 tokens, and a batch takes 2$"):
        next(batches(tokenizer, "to be", settings()))


def test_a_stopped_training_goes_on_bit_for_bit(
    spec: Qwen3Spec, tokenizer: tokenizers.Tokenizer, text: str, tmp_path: Path
) -> None:
    from train_shakespeare import train

    seen: list[int] = []

    def stop(state: Any, loss: float) -> None:
        assert math.isfinite(loss)
        seen.append(state.step)
        if state.step == 2:
            raise KeyboardInterrupt

    def run(name: str, **options: Any) -> Any:
        return train(spec, settings(), tokenizer, text, tmp_path / name, save_every=2, **options)

    with pytest.raises(KeyboardInterrupt):
        run("stopped.npz", report=stop)
    # What somebody who is killed while saving leaves.
    (tmp_path / "part.npz").write_bytes(b"PK\x03\x04")
    resumed = run("stopped.npz", report=stop)
    assert seen == [2, 4]
    whole = run("whole.npz")
    initial = build_model(spec).init(jax.random.key(0))
    trees = ((state.params, state.optimizer) for state in (whole, resumed))
    for expected, found in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(found, expected)
    for before, after in zip(*map(jax.tree.leaves, (initial, whole.params)), strict=True):
        assert not np.array_equal(after, before)
    assert resumed.seconds > 0
    # Finished: nothing is trained any more.
    again = run("stopped.npz", report=stop)
    assert (again.step, seen) == (4, [2, 4])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[: len(raw) // 2], ""),
        (lambda raw: b"", "No data left in file"),
        (lambda raw: b"not an archive", ""),
        (
            lambda raw: raw.replace(b"seconds.npy", b"minutes.npy").replace(b"step.npy", b"stop.npy"),
            "step is not a file",
        ),
    ],
)
def test_a_damaged_state_is_said(damage: Any, reason: str, tmp_path: Path) -> None:
    from train_shakespeare import State, load_state, save_state

    saved = tmp_path / "state.npz"
    state = State(step=2, seconds=1.0, params={"kernel": np.ones(3)}, optimizer=np.zeros(3))
    save_state(state, saved)
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(SystemExit) as caught:
        load_state(saved, state)
    message = str(caught.value)
    assert message.startswith(f"{saved} is no state of a training: {reason}")
    assert message.endswith(". Delete it to start anew.")


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    from train_shakespeare import State, load_state, save_state

    saved = tmp_path / "state.npz"
    state = State(step=2, seconds=1.0, params={"kernel": np.ones(3)}, optimizer=np.zeros(3))
    save_state(state, saved)
    for other in (np.ones(4), np.ones(3, np.int32)):
        with pytest.raises(SystemExit) as caught:
            load_state(saved, replace(state, params={"kernel": other}))
        assert str(caught.value) == f"{saved} is the state of another model. Delete it to start anew."


def test_a_state_that_does_not_say_its_time_is_read(tmp_path: Path) -> None:
    from train_shakespeare import State, load_state

    saved = tmp_path / "state.npz"
    np.savez(saved, **{"step": 7, "0": np.ones(3, np.float32), "1": np.zeros(2, np.float32)})
    like = State(step=0, seconds=0.0, params={"kernel": np.zeros(3, np.float32)}, optimizer=np.ones(2, np.float32))
    found = load_state(saved, like)
    assert found.step == 7
    assert math.isnan(found.seconds)
    np.testing.assert_array_equal(found.params["kernel"], np.ones(3))


def test_nats_per_character_are_those_of_one_long_look(
    spec: Qwen3Spec, tokenizer: tokenizers.Tokenizer, text: str
) -> None:
    """Windows as long as the text see all of it; shorter ones see what they say."""
    from shakespeare_export import nats_per_character

    model = build_model(spec)
    params = jax.tree.map(lambda leaf: 5 * leaf, model.init(jax.random.key(1)))
    part = text[:60]
    ids = np.asarray(tokenizer.encode(part).ids)
    characters = len(part) - len(tokenizer.decode([int(ids[0])]))

    apply = jax.jit(model.apply)

    def look(begin: int, end: int) -> np.ndarray:
        # What comes after a token changes nothing for it; one size is one program.
        seen = np.pad(ids[begin:end], (0, len(ids) - (end - begin)))
        logits = np.asarray(apply(params, seen[None]).logits, np.float64)[0, : end - begin]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(logs, ids[begin + 1 : end + 1, None], -1)[:, 0]

    count = len(ids) - 1
    assert count > 10
    whole = nats_per_character(model, params, tokenizer, part, context=2 * len(ids) + 2)
    np.testing.assert_allclose(whole, look(0, count).sum() / characters, rtol=1e-5)
    windows = [
        look(max(start - 4, 0), min(start + 4, count))[start - max(start - 4, 0) :] for start in range(0, count, 4)
    ]
    short = nats_per_character(model, params, tokenizer, part, context=8)
    np.testing.assert_allclose(short, np.concatenate(windows).sum() / characters, rtol=1e-5)
    assert abs(short - whole) > 1e-4


def test_what_must_not_be_shipped_is_said(tmp_path: Path) -> None:
    from shakespeare_export import problems, usable_context

    (tmp_path / "file").write_bytes(bytes(10))
    assert problems({"float32": 1.70, "FP8": 1.716}, tmp_path) == []
    assert len(problems(dict.fromkeys(("float32", "FP8"), float("nan")), tmp_path)) == 2
    (tmp_path / "file").write_bytes(bytes(4_000_001))
    assert problems({"float32": 1.71, "FP8": 1.75}, tmp_path) == [
        "1.7100 nats per character in float32, at most 1.7 wanted",
        "FP8 is 2.34% above float32, at most 1% wanted",
        "4,000,001 bytes, at most 4,000,000 wanted",
    ]
    assert usable_context({256: 1.40, 512: 1.41, 1024: 1.42}) == 512
    assert usable_context({256: 1.40, 512: 1.45, 1024: 1.40}) == 256


def test_the_folder_holds_what_was_trained(spec: Qwen3Spec, tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> None:
    from shakespeare_export import write_float32, write_folder

    model = build_model(spec)
    params = model.init(jax.random.key(2))
    write_float32(model, params, tmp_path / "plain")
    write_folder(tmp_path / "plain", tokenizer, tmp_path / "made")
    trained, plain = flat(params), flat(bombus.load_model(tmp_path / "plain").params)
    assert trained.keys() == plain.keys()
    for path, leaf in trained.items():
        np.testing.assert_array_equal(plain[path], leaf)
        assert plain[path].dtype == np.float32
    kept = flat(bombus.load_model(tmp_path / "made", preserve_source_types=True).params)
    wide = flat(bombus.load_model(tmp_path / "made", policy="f32").params)
    for path, leaf in trained.items():
        is_kernel = path.endswith(".kernel")
        assert kept[path].dtype.name == ("float8_e4m3fn" if is_kernel else "bfloat16")
        largest = float(np.abs(leaf).max())
        # Half a step of three bits of mantissa, or of eight.
        np.testing.assert_allclose(wide[path], leaf, rtol=2.0 ** (-4 if is_kernel else -8), atol=largest * 2.0**-15)
    loaded = bombus.load_tokenizer(tmp_path / "made")
    assert loaded.encode("to be.\n\n") == tokenizer.encode("to be.\n\n").ids
    assert loaded.eos_token_id == 0


def test_the_card_says_what_was_measured(spec: Qwen3Spec, tmp_path: Path) -> None:
    from shakespeare_card import Card, write_card

    card = Card(
        spec=spec,
        parameters=12345,
        facts={"steps": "4 of 2 x 16 tokens", "held out": "the last tenth"},
        losses={"float32": 1.25, "FP8": 1.26},
        contexts={16: 1.25, 32: 1.375},
        sample="HAMLET:\nTo be.\n",
    )
    write_card(card, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        "| parameters | 12,345 |",
        "| steps | 4 of 2 x 16 tokens |\n| held out | the last tenth |",
        "| float32 | 1.2500 | +0.00% |\n| FP8 | 1.2600 | +0.80% |",
        "| 9 to 16 | 1.2500 |\n| 17 to 32 | 1.3750 |",
        "```text\nHAMLET:\nTo be.\n```",
        "| blocks, hidden size, feed-forward size | 1, 16, 24 |",
        "| positions | 64 |",
    ):
        assert f"\n{line}\n" in text
    assert "{" not in text
