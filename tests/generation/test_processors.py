"""What the settings change in logits, against plain Python on each row's own tokens.

Shapes: B rows, L slots, V vocabulary, W sequences of at most M tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_weights import KERNELS, REASON

import bombus
from bombus.generation.history import History
from bombus.generation.next_token import _with_xla, next_token
from bombus.generation.processors import process
from bombus.generation.sampling import Sampling, make_sampling

ROWS, PROMPT_SLOTS, NEW_SLOTS, VOCAB = 6, 11, 9, 37
LETTERS = 5  # rows are written in so few tokens that runs repeat
STOP = (2, 30)

OFF: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram": 0,
    "min_new_tokens": 0,
    "min_length": 0,
}
# The values that random rows choose from: many rows do not want what others do.
PER_ROW: dict[str, list[float]] = {
    "repetition_penalty": [1.0, 0.5, 1.7],
    "presence_penalty": [0.0, 0.8, -1.5],
    "frequency_penalty": [0.0, 0.3, -0.4],
    "no_repeat_ngram": [0, 1, 2, 3, 5, 40],
    "min_new_tokens": [0, 1, 4, 100],
    "min_length": [0, 6, 12],
}
FOR_ALL = ("sequence_bias", "bad_words_ids", "logit_bias", "suppress_tokens", "begin_suppress_tokens")
FORCED = ("forced_tokens", "forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch: logits, what each row holds, what each row wants, and what all rows want."""

    logits_BV: np.ndarray
    prompts: list[list[int]]
    new: list[list[int]]
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    max_new_tokens: int
    garbage: int


def random_case(seed: int, *names: str) -> Case:
    """A batch of random rows that want these processors, or all of them."""
    random = np.random.default_rng(seed)
    wanted = names or (*PER_ROW, *FOR_ALL, *FORCED)
    step = int(random.choice([0, 1, random.integers(0, NEW_SLOTS)]))
    prompts = [random.integers(0, LETTERS, random.integers(1, PROMPT_SLOTS + 1)).tolist() for _ in range(ROWS)]
    prompts[seed % ROWS] = prompts[seed % ROWS][:1]

    def word(longest: int) -> tuple[int, ...]:
        return tuple(random.integers(0, LETTERS, random.integers(1, longest + 1)).tolist())

    def ids(high: int = VOCAB) -> tuple[int, ...]:
        return tuple(random.choice(high, 3, replace=False).tolist())

    choices: dict[str, Any] = {
        "sequence_bias": tuple((word(3), float(random.normal())) for _ in range(20)),
        "bad_words_ids": (*(word(3) for _ in range(5)), word(9), (STOP[0],)),
        "logit_bias": tuple((token, float(random.normal())) for token in ids()),
        "suppress_tokens": ids(),
        "begin_suppress_tokens": ids(LETTERS),
        "forced_tokens": ((3, 9), (int(random.integers(0, 2)), 11)),
        "forced_bos_token_id": 1,
        "forced_eos_token_id": STOP[1],
    }
    return Case(
        logits_BV=random.normal(0, 2, (ROWS, VOCAB)).astype(np.float32),
        prompts=prompts,
        new=[random.integers(0, LETTERS, step).tolist() for _ in range(ROWS)],
        rows=[
            OFF | {name: random.choice(values) for name, values in PER_ROW.items() if name in wanted}
            for _ in range(ROWS)
        ],
        settings={name: choices[name] for name in wanted if name in choices},
        max_new_tokens=int(random.integers(1, NEW_SLOTS + 1)),
        garbage=int(random.integers(0, LETTERS)),
    )


def arrays(case: Case) -> tuple[np.ndarray, History, Sampling]:
    """What the compiled program takes. Slots that hold no token hold one of the letters nevertheless."""
    tokens_BL = np.full((ROWS, PROMPT_SLOTS + NEW_SLOTS), case.garbage, np.int32)
    real_BL = np.zeros(tokens_BL.shape, np.bool_)
    for row, (prompt, new) in enumerate(zip(case.prompts, case.new, strict=True)):
        held = slice(PROMPT_SLOTS - len(prompt), PROMPT_SLOTS + len(new))
        tokens_BL[row, held], real_BL[row, held] = prompt + new, True
    history = History(
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        length=np.int32(PROMPT_SLOTS + len(case.new[0])),
        prompt_slots=PROMPT_SLOTS,
    )
    base = make_sampling(
        bombus.GenerationConfig(**case.settings),
        batch=ROWS,
        vocab_size=VOCAB,
        steps=NEW_SLOTS,
        max_new_tokens=case.max_new_tokens,
        stop_ids=STOP,
        seeds=[0] * ROWS,
    )
    # M is 16 for the word of nine tokens and 8 for all others: here always 16.
    narrow = 16 - base.sequences_WM.shape[1]
    sequences = np.pad(base.sequences_WM, ((0, 64 - len(base.sequences_WM)), (narrow, 0)), constant_values=-1)
    base = replace(
        base,
        sequences_WM=sequences,
        sequence_bias_W=np.pad(base.sequence_bias_W, (0, 64 - len(base.sequence_bias_W))),
    )
    columns = {name: np.array([row[name] for row in case.rows]) for name in OFF}
    return (
        case.logits_BV,
        history,
        replace(base, **{name: values.astype(getattr(base, name).dtype) for name, values in columns.items()}),
    )


def expected(case: Case, row: int) -> np.ndarray:
    """One row in float64, from nothing but its own tokens."""
    logits = case.logits_BV[row].astype(np.float64)
    prompt, new, wants, settings = case.prompts[row], case.new[row], case.rows[row], case.settings
    text, step = prompt + new, len(new)

    def add(sequence: tuple[int, ...], bias: float) -> None:
        *before, last = sequence
        if text[len(text) - len(before) :] == before and len(before) <= len(text):
            logits[last] += bias

    for token, bias in settings.get("logit_bias", ()):
        logits[token] += bias
    for sequence, bias in dict(settings.get("sequence_bias", ())).items():
        add(sequence, bias)
    for token in set(text):
        logits[token] *= wants["repetition_penalty"] if logits[token] < 0 else 1 / wants["repetition_penalty"]
    for token in set(new):
        logits[token] -= wants["presence_penalty"] + wants["frequency_penalty"] * new.count(token)
    size = int(wants["no_repeat_ngram"])
    runs = [text[index : index + size] for index in range(len(text) - size + 1)] if size else []
    for token in range(VOCAB):
        if len(text) >= size - 1 and [*text[len(text) - size + 1 :], token] in runs:
            logits[token] = -math.inf
    for word in set(settings.get("bad_words_ids", ())) - {(token,) for token in STOP}:
        add(word, -math.inf)
    if step < wants["min_new_tokens"] or len(text) < wants["min_length"]:
        logits[list(STOP)] = -math.inf
    logits[list(settings.get("suppress_tokens", ()))] = -math.inf
    bos = settings.get("forced_bos_token_id") if len(prompt) == 1 else None
    if step == (0 if bos is None else 1):
        logits[list(settings.get("begin_suppress_tokens", ()))] = -math.inf
    forced = dict(settings.get("forced_tokens", ())).get(step, bos if step == 0 else None)
    if settings.get("forced_eos_token_id") is not None and step == case.max_new_tokens - 1:
        forced = settings["forced_eos_token_id"]
    if forced is not None:
        logits[:] = -math.inf
        logits[forced] = 0
    return logits


compute = jax.jit(process)


def run(case: Case) -> np.ndarray:
    return np.asarray(compute(*arrays(case)))


@pytest.mark.parametrize(
    "names",
    [
        *((name,) for name in (*PER_ROW, *FOR_ALL, *FORCED)),
        ("begin_suppress_tokens", "forced_bos_token_id"),
        ("forced_tokens", "forced_eos_token_id", "suppress_tokens", "min_new_tokens"),
        ("sequence_bias", "bad_words_ids", "repetition_penalty"),
        (),
    ],
    ids="+".join,
)
def test_each_processor_and_all_together_are_pythons(names: tuple[str, ...]) -> None:
    """Twelve random batches, in which some row changes, and not every one where rows want different things."""
    changed = []
    for seed in range(12):
        case = random_case(seed, *names)
        ours = run(case)
        for row in range(ROWS):
            theirs = expected(case, row)
            np.testing.assert_allclose(ours[row], theirs, rtol=1e-5, atol=1e-5, err_msg=f"{case} row {row}")
            changed.append(not np.array_equal(ours[row], case.logits_BV[row]))
    assert any(changed)
    assert not (len(names) == 1 and names[0] in PER_ROW and all(changed))


@pytest.mark.skipif(not KERNELS, reason=REASON)
@pytest.mark.parametrize("names", [*((name,) for name in (*PER_ROW, *FOR_ALL, *FORCED)), FORCED, ()], ids="+".join)
def test_the_kernel_draws_from_the_same_logits(names: tuple[str, ...]) -> None:
    """The best token, and forty draws of every row of twelve batches: a wrong logit changes some of them."""
    with_xla = jax.jit(_with_xla)
    for seed in range(12):
        logits_BV, history, settings = arrays(random_case(seed, *names))
        settings = replace(settings, seed=np.arange(ROWS, dtype=np.uint32) + 100 * seed)
        for step in range(41):
            temperature = np.full(ROWS, 0.8 if step else 0.0, np.float32)
            arguments = (logits_BV, replace(settings, temperature=temperature), jnp.int32(step), history)
            np.testing.assert_array_equal(next_token(*arguments), with_xla(*arguments))


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Bit for bit the same logits in another order, among rows that want other things and are of other lengths."""
    for seed in range(6):
        case, other = random_case(seed), random_case(seed + 100)
        alone = run(case)
        order = np.random.default_rng(seed).permutation(ROWS)
        step = len(case.new[0])
        new = [(tokens * NEW_SLOTS + [0] * NEW_SLOTS)[:step] for tokens in other.new]
        for row in range(ROWS):
            place = int(order[row])
            logits = other.logits_BV.copy()
            logits[place] = case.logits_BV[row]
            mixed = replace(
                case,
                logits_BV=logits,
                prompts=[case.prompts[row] if index == place else other.prompts[index] for index in range(ROWS)],
                new=[case.new[row] if index == place else new[index] for index in range(ROWS)],
                rows=[case.rows[row] if index == place else other.rows[index] for index in range(ROWS)],
            )
            np.testing.assert_array_equal(run(mixed)[place], alone[row])


def test_every_mix_is_one_program() -> None:
    run(random_case(0))
    programs = compute._cache_size()
    for seed, name in enumerate((*PER_ROW, *FOR_ALL, *FORCED)):
        run(random_case(seed, name))
    assert compute._cache_size() == programs == 1


def equations(jaxpr: Any, *, branches: bool) -> list[Any]:
    """All equations, or those that run whatever the settings are."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            inner = value if isinstance(value, tuple) and equation.primitive.name == "cond" and branches else [value]
            for closed in inner:
                if hasattr(closed, "jaxpr"):
                    found += equations(closed.jaxpr, branches=branches)
    return found


def test_what_is_off_is_skipped_and_nothing_is_larger_than_the_logits() -> None:
    """Outside the branches nothing is counted, searched or scattered; no array has more values than the logits."""
    slots, vocab = 300, 5000
    shape = {"tokens_BL": jnp.zeros((2, slots), jnp.int32), "real_BL": jnp.zeros((2, slots), jnp.bool_)}
    history = History(**shape, length=jnp.int32(20), prompt_slots=10)
    off = make_sampling(
        bombus.GenerationConfig(),
        batch=2,
        vocab_size=vocab,
        steps=slots - 10,
        max_new_tokens=5,
        stop_ids=STOP,
        seeds=[0, 0],
    )
    jaxpr = jax.make_jaxpr(process)(jnp.zeros((2, vocab)), history, off).jaxpr
    outside = {equation.primitive.name for equation in equations(jaxpr, branches=False)}
    assert "cond" in outside
    assert not outside & {"scatter", "scatter-add", "while", "scan", "sort", "exp"}
    inside = equations(jaxpr, branches=True)
    assert {"scatter", "scatter-add", "while"} <= {equation.primitive.name for equation in inside}
    assert max(math.prod(out.aval.shape) for equation in inside for out in equation.outvars) == 2 * vocab


def test_the_history_says_what_is_new() -> None:
    """Padding is neither prompt nor new."""
    _, history, _ = arrays(replace(random_case(0), prompts=[[1], [1, 2]] * 3, new=[[3, 4, 0]] * ROWS))
    assert int(history.step) == 3
    np.testing.assert_array_equal(history.prompt_length_B, [1, 2] * 3)
    np.testing.assert_array_equal(history.new_BL.sum(axis=1), [3] * ROWS)
    assert not history.new_BL[:, :PROMPT_SLOTS].any()
