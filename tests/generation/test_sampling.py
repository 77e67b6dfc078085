"""What the filters keep and how often each token is drawn, against float64 NumPy; log-probabilities.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_weights import KERNELS, REASON
from scipy import stats

import bombus
from bombus.generation.next_token import _with_xla, next_token
from bombus.generation.sampling import Sampling, choose, filtered, log_probabilities, make_sampling
from bombus.kernels import native

DRAWS, ROWS, VOCAB = 8000, 32, 203  # thirteen blocks of the vocabulary, of which the last is partial
LOGITS = np.random.default_rng(3).normal(0, 2.2, VOCAB).astype(np.float32)
ROW_LOGITS = np.broadcast_to(LOGITS, (ROWS, VOCAB))

# The last ones differ where two neighbours change places.
CASES: list[dict[str, float]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 3},
    {"top_k": 64},
    {"top_k": 65},
    {"top_k": 100_000},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"min_p": 0.4},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 0.004},
    {"eta_cutoff": 0.3},
    {"eta_cutoff": 0.002},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.9},
    {"temperature": 1.4, "top_p": 0.97, "min_p": 0.02},
    {"top_k": 80, "typical_p": 0.6},
    {"typical_p": 0.3, "epsilon_cutoff": 0.02},
    {"epsilon_cutoff": 0.005, "eta_cutoff": 0.1},
    {"temperature": 1.2, "top_k": 120, "top_p": 0.98, "min_p": 0.01, "typical_p": 0.95, "eta_cutoff": 0.01},
]


def sampling(rows: int, *cases: dict[str, float], seeds: np.ndarray | None = None) -> Sampling:
    """Arrays for `rows` rows, which take the cases in turn; no two seeds are the same."""
    off = bombus.GenerationConfig(do_sample=True, top_k=0)
    numbers = list(range(rows)) if seeds is None else seeds.tolist()
    base = make_sampling(off, batch=rows, vocab_size=VOCAB, steps=16, max_new_tokens=16, stop_ids=(), seeds=numbers)
    columns = {name: np.array(getattr(base, name)) for name in {name for case in cases for name in case}}
    for row in range(rows):
        for name, value in cases[row % len(cases)].items():
            columns[name][row] = value
    return replace(base, **{name: jnp.asarray(column) for name, column in columns.items()})


@jax.jit
def compute(logits_BV: jax.Array, sampling: Sampling, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens, and the logits that they were drawn from."""
    return next_token(logits_BV, sampling, step), filtered(logits_BV, sampling)


def run(
    settings: Sampling, logits_BV: np.ndarray = ROW_LOGITS, step: int | np.ndarray = 0
) -> tuple[np.ndarray, np.ndarray]:
    """With a step per row; `draw` has one for all."""
    tokens, kept = compute(logits_BV, settings, np.broadcast_to(step, len(logits_BV)).astype(np.int32))
    return np.asarray(tokens), np.asarray(kept)


@jax.jit
def choose_many(logits_V: jax.Array, sampling: Sampling, step: jax.Array) -> jax.Array:
    return next_token(jnp.broadcast_to(logits_V, (DRAWS, VOCAB)), sampling, step)


def draw(logits_V: np.ndarray, step: int = 0) -> np.ndarray:
    """A token of every seed below DRAWS, without filters, which a batch so large would take long for."""
    return np.asarray(choose_many(jnp.asarray(logits_V), sampling(DRAWS, {}), jnp.int32(step)))


def p_value(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    """Of the chi-squared test; rare tokens count as one."""
    counts = np.bincount(tokens, minlength=VOCAB)
    often = probabilities * len(tokens) >= 5
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(probabilities[often], probabilities[~often].sum()) * len(tokens)
    return float(stats.chisquare(seen[wanted > 0], wanted[wanted > 0]).pvalue) if (wanted > 0).sum() > 1 else 1.0


def expected(logits: np.ndarray, case: dict[str, float]) -> np.ndarray:
    """Probabilities in float64 by sorting, one filter after the other."""
    weights = np.exp(logits.astype(np.float64) / case.get("temperature", 1.0))

    def leave(keep: np.ndarray) -> None:
        nonlocal weights
        weights = np.where(keep, weights, 0)
        weights = weights / weights.sum()

    def head(order: np.ndarray, mass: float) -> np.ndarray:
        """The first tokens of an order until their mass reaches a number."""
        count = int((np.cumsum(weights[order]) < mass).sum()) + 1
        return np.isin(np.arange(len(weights)), order[:count])

    def entropy() -> float:
        some = weights[weights > 0]
        return float(-(some * np.log(some)).sum())

    leave(np.ones(len(logits), bool))
    if case.get("top_k"):
        leave(weights >= np.sort(weights)[-int(min(case["top_k"], len(weights)))])
    leave(head(np.argsort(-weights), case.get("top_p", 1.0)))
    leave(weights >= case.get("min_p", 0.0) * weights.max())
    if case.get("typical_p", 1.0) < 1:
        with np.errstate(divide="ignore"):
            leave(head(np.argsort(np.abs(-np.log(weights) - entropy())), case["typical_p"]))
    leave((weights >= case.get("epsilon_cutoff", 0.0)) | (weights == weights.max()))
    eta = case.get("eta_cutoff", 0.0)
    leave((weights >= min(eta, np.sqrt(eta) * np.exp(-entropy()))) | (weights == weights.max()))
    return weights


@pytest.fixture(scope="module")
def kept() -> np.ndarray:
    """What every case leaves of the logits, all in one batch."""
    return run(sampling(ROWS, *CASES))[1][: len(CASES)]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_support_and_distribution_are_numpys(kept: np.ndarray, index: int) -> None:
    """The tokens that stay, their probabilities, and chi-squared of 8,000 draws, of which none is of another token."""
    probabilities = expected(LOGITS, CASES[index])
    np.testing.assert_array_equal(np.isfinite(kept[index]), probabilities > 0)
    ours = np.exp(kept[index] - kept[index].max())
    np.testing.assert_allclose(ours / ours.sum(), probabilities, rtol=2e-5, atol=1e-9)
    tokens = draw(kept[index])
    assert np.isin(tokens, np.flatnonzero(probabilities)).all()
    assert p_value(tokens, probabilities) > 1e-3


def test_the_chi_squared_test_sees_a_wrong_setting() -> None:
    """Draws at temperature 1 are not those of 1.1, and a step's draws are not the step's before."""
    assert p_value(draw(LOGITS), expected(LOGITS, {"temperature": 1.1})) < 1e-6
    assert p_value(draw(LOGITS), expected(LOGITS, {"temperature": 0.93})) < 1e-4
    both = draw(LOGITS).astype(np.int64) * VOCAB + draw(LOGITS, step=1)
    best = np.argsort(-LOGITS)[:6].tolist()
    pairs = np.array([[(both == first * VOCAB + second).sum() for second in best] for first in best])
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_few_and_many_best_tokens_are_found_alike(kept: np.ndarray) -> None:
    """A batch whose rows all have a small top_k takes another way than one with a large one in it."""
    small = [index for index, case in enumerate(CASES) if case.get("top_k", 0) <= 64]
    _, again = run(sampling(ROWS, *(CASES[index] for index in small)))
    np.testing.assert_array_equal(again[: len(small)], kept[small])


def test_a_mixed_batch_draws_from_what_each_row_keeps(kept: np.ndarray) -> None:
    """Every setting in one batch: the token is the one that the row's seed draws from its filtered logits."""
    tokens, _ = run(sampling(ROWS, *CASES))
    again, _ = run(sampling(ROWS, {}), kept[np.arange(ROWS) % len(CASES)])
    np.testing.assert_array_equal(tokens, again)


SINGLE = [
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3, "typical_p": 0.1},
    {"top_k": 1},
    {"top_p": 0.0},
    {"min_p": 1.0},
    {"epsilon_cutoff": 0.99},
    {"eta_cutoff": 0.9999, "temperature": 0.01},
]


@pytest.mark.skipif(not KERNELS, reason=REASON)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("vocab", [1, 2, 64, 203, 70_001])
def test_the_kernel_draws_what_xla_does(name: str, vocab: int) -> None:
    """For the same seeds, settings and steps: whole numbers among the logits, many of them equal, and -inf."""
    random = np.random.default_rng(vocab)
    cases = [{}, *CASES, *SINGLE, {"top_k": 1500, "top_p": 0.6}, {"top_k": vocab}, {"temperature": 0.3, "top_p": 0.5}]
    rows = 4 * len(cases)
    settings = sampling(rows, *cases, seeds=random.integers(0, 2**32, rows, dtype=np.uint32))
    settings = replace(settings, bias_V=jnp.zeros(vocab), first_bias_V=jnp.zeros(vocab))
    logits_BV = random.normal(0, 2.2, (rows, vocab)).astype(np.float32)
    logits_BV[::3] = np.round(logits_BV[::3])
    logits_BV[::4] = np.where(random.random((len(logits_BV[::4]), vocab)) < 0.5, -np.inf, logits_BV[::4])
    steps = random.integers(0, 2**31 - 1, rows).astype(np.int32)
    with native.using_kernels(name):
        ours = np.asarray(next_token(logits_BV, settings, steps))
    theirs = np.asarray(jax.jit(_with_xla)(logits_BV, settings, steps, None))
    # Sums are rounded in another order: once in a million draws that decides.
    assert (ours != theirs).mean() < 0.01, [cases[row % len(cases)] for row in np.flatnonzero(ours != theirs)]


@pytest.mark.skipif(not KERNELS, reason=REASON)
def test_a_row_that_is_no_number_harms_no_other() -> None:
    """One with NaN gives its first NaN where it is greedy; it, and one of infinity, token 0 where it draws."""
    logits = np.array(ROW_LOGITS)
    logits[0, 7], logits[2, 9], logits[3, [100, 5]], logits[4] = np.nan, np.inf, np.nan, -np.inf
    others = np.delete(np.arange(ROWS), [0, 2, 3, 4])
    for case in ({"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.4}, {}):
        ours = np.asarray(next_token(logits, sampling(ROWS, case), jnp.int32(0)))
        assert ours[[0, 2, 3, 4]].tolist() == ([7, 9, 5, 0] if "temperature" in case else [0, 0, 0, 0])
        plain = np.asarray(next_token(ROW_LOGITS, sampling(ROWS, case), jnp.int32(0)))
        np.testing.assert_array_equal(ours[others], plain[others])


def test_what_leaves_one_token_leaves_the_best() -> None:
    """Also where it is the first or the last one."""
    for place in (int(LOGITS.argmax()), 0, VOCAB - 1):
        logits = np.roll(ROW_LOGITS, place - LOGITS.argmax(), axis=1)
        assert set(run(sampling(ROWS, *SINGLE), logits)[0]) == {place}


def test_typical_p_may_remove_the_best() -> None:
    """It prefers the token of average surprise."""
    tokens, kept = run(sampling(ROWS, {"typical_p": 1e-6}))
    assert set(tokens) == {int(np.argmax(kept[0]))}
    assert tokens[0] != LOGITS.argmax()


def test_equal_logits_share_their_fate() -> None:
    """Ties at the edge stay together, the two zeros are equal, and the first of the best is the greedy one."""
    logits = np.full((ROWS, VOCAB), -4.0, np.float32)
    logits[:, [10, 20]] = 1.0
    logits[:, [100, 202]] = 0.0
    logits[:, 101] = -0.0
    best, more = {10, 20}, {10, 20, 100, 101, 202}
    cases = [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.05}, {"top_p": 0.5}, {"min_p": 0.9}, {"temperature": 0.0}]
    for many in ({}, {"top_k": VOCAB}):  # another row's top_k decides how the others are found
        tokens, kept = run(sampling(ROWS, *cases, many), logits)
        for row, left in enumerate([best, more, best, more, best]):
            assert set(np.flatnonzero(np.isfinite(kept[row]))) == left, cases[row]
        assert set(tokens[5 :: len(cases) + 1]) == {10}


def test_what_is_minus_infinity_is_never_drawn() -> None:
    """Fewer tokens than top_k are left, in the first, the last and the edges of the blocks."""
    logits = np.full((ROWS, VOCAB), -np.inf, np.float32)
    logits[:, [0, 15, 16, 202]] = [0.0, 1.0, 0.5, -1.0]
    for top_k in (10, 70):
        _, kept = run(sampling(ROWS, {"top_k": top_k, "top_p": 0.999, "typical_p": 0.9999}), logits)
        assert set(np.flatnonzero(np.isfinite(kept[0]))) == {0, 15, 16, 202}
    assert set(draw(logits[0])) == {0, 15, 16, 202}


def test_a_row_that_may_write_nothing_harms_no_other() -> None:
    logits = np.array(ROW_LOGITS)
    logits[1] = -np.inf
    case = {"top_k": 70, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01}
    tokens, _ = run(sampling(ROWS, case), logits)
    plain, _ = run(sampling(ROWS, case))
    assert tokens[1] == 0
    np.testing.assert_array_equal(np.delete(tokens, 1), np.delete(plain, 1))


def test_a_row_depends_on_its_seed_and_step_alone() -> None:
    """The same seed gives the same token in every place and company; a step per row is each row's step."""
    tokens, later = draw(LOGITS), draw(LOGITS, step=1)
    order = np.random.default_rng(0).permutation(DRAWS)[:ROWS]
    np.testing.assert_array_equal(run(sampling(ROWS, {}, seeds=order))[0], tokens[order])
    assert (later != tokens).mean() > 0.7
    steps = np.arange(ROWS) % 2
    mixed, _ = run(sampling(ROWS, {}), step=steps)
    np.testing.assert_array_equal(mixed, np.where(steps == 0, tokens[:ROWS], later[:ROWS]))


def test_every_mix_is_one_program(compilations: list[str]) -> None:
    run(sampling(ROWS, {}))
    settings = [sampling(ROWS, *mix) for mix in ([{"temperature": 0.0}], CASES, *([case] for case in CASES))]
    compilations.clear()
    for step, mix in enumerate(settings):
        run(mix, step=step)
    assert compilations == []
    jax.jit(lambda x: x * 3)(jnp.int32(1))
    assert len(compilations) == 1  # the counter counts


@pytest.mark.skipif(not KERNELS, reason=REASON)
def test_the_kernel_is_all_that_a_program_has_of_it() -> None:
    """No sampler is compiled on CPU; elsewhere there is no kernel. Mapped over, it draws what each call draws."""
    traced = next_token.trace(ROW_LOGITS, sampling(ROWS, *CASES), jnp.int32(0))
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert on_cpu.count("@bombus_next_token") == 1
    assert "while" not in on_cpu
    assert "bombus_" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    settings = sampling(ROWS, *CASES)
    steps = jnp.arange(3)
    mapped = jax.vmap(next_token, in_axes=(None, None, 0))(ROW_LOGITS, settings, steps)
    np.testing.assert_array_equal(mapped, [next_token(ROW_LOGITS, settings, step) for step in steps])


def outside_branches(jaxpr: Any) -> set[str]:
    """The primitives that run whatever the settings are."""
    found: set[str] = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        if equation.primitive.name != "cond":
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    found |= outside_branches(value.jaxpr)
    return found


def test_greedy_rows_pay_for_no_sampler() -> None:
    shape = jax.ShapeDtypeStruct((ROWS, VOCAB), jnp.float32)
    closed = jax.make_jaxpr(choose)(shape, sampling(ROWS, {}), jnp.int32(0))
    outside = outside_branches(closed.jaxpr)
    assert "cond" in outside
    assert not outside & {
        "argmax",  # which XLA finds number by number on CPU
        "exp",
        "while",
        "scan",
        "sort",
        "top_k",
        "cumsum",
        "random_bits",
        "threefry2x32",
        "div",
    }
    costly = jax.make_jaxpr(filtered)(shape, sampling(ROWS, {})).jaxpr
    assert not outside_branches(costly) & {"exp", "while", "scan", "sort", "top_k", "cumsum"}


def test_log_probabilities_are_the_models_own() -> None:
    """Of the chosen token and of the 20 best, best first; a small vocabulary has fewer; zeros when not wanted."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 4, (3, 37)).astype(np.float32)
    logits[1, 5] = -np.inf
    chosen = np.array([0, 5, 36], np.int32)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    measure = jax.jit(log_probabilities, static_argnums=3)
    own, ids, best = map(np.asarray, measure(logits, chosen, jnp.bool_(True), 20))
    np.testing.assert_allclose(own, exact[[0, 1, 2], chosen], rtol=1e-5, atol=1e-5)
    assert own[1] == -np.inf
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :20])
    np.testing.assert_allclose(best, -np.sort(-exact, axis=1)[:, :20], rtol=1e-5, atol=1e-5)
    assert ids.dtype == np.int32
    for array, shape in zip(measure(logits, chosen, jnp.bool_(False), 20), ((3,), (3, 20), (3, 20)), strict=True):
        np.testing.assert_array_equal(array, np.zeros(shape))
    assert measure._cache_size() == 1
    assert [len(array[0]) for array in measure(logits, chosen, jnp.bool_(True), 50)[1:]] == [37, 37]
    shapes = (jax.ShapeDtypeStruct((3, 37), jnp.bfloat16), jax.ShapeDtypeStruct((3,), jnp.int32))
    closed = jax.make_jaxpr(log_probabilities, static_argnums=3)(*shapes, jnp.bool_(True), 20)
    assert outside_branches(closed.jaxpr) <= {"cond", "convert_element_type"}
