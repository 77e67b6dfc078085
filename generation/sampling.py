"""The next token of each row, and what decides it: every setting is traced data of one compiled program.

Shapes: B batch, V vocabulary, N new tokens, W sequences of at most M tokens, K most probable tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bombus.generation.filters import cut_epsilon, cut_eta, keep_min_p, keep_top_k, keep_top_p, keep_typical_p
from bombus.loader import GenerationConfig

_STOP_SLOTS, _SEQUENCES, _SEQUENCE_TOKENS = 32, 16, 8  # the least; a longer list takes the next power of two


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the rows are sampled. Everything is an array; make_sampling builds them.

    (B,), one number per row, what it says when off: temperature (0 is greedy), top_k 0, top_p 1, min_p 0, typical_p 1,
    epsilon_cutoff 0, eta_cutoff 0, repetition_penalty 1, presence_penalty 0, frequency_penalty 0, no_repeat_ngram 0,
    min_new_tokens 0, min_length 0 (prompt included), seed (uint32).

    The same for all rows: bias_V is added at every step, and first_bias_V at the first one (-inf: never); biased ()
    says whether there is any bias_V, so that no step need read it to know; forced_N is the token of each step, or -1;
    forced_bos () the first token after a prompt of one token, or -1; sequence_bias_W is added to the last token of a
    sequence of sequences_WM, right-aligned after -1, where a row ends in those before it; stop holds the ids that end a
    row, or -1.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    epsilon_cutoff: jax.Array
    eta_cutoff: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    no_repeat_ngram: jax.Array
    min_new_tokens: jax.Array
    min_length: jax.Array
    seed: jax.Array
    biased: jax.Array
    bias_V: jax.Array
    first_bias_V: jax.Array
    forced_N: jax.Array
    forced_bos: jax.Array
    sequences_WM: jax.Array
    sequence_bias_W: jax.Array
    stop: jax.Array


def make_sampling(
    config: GenerationConfig,
    *,
    batch: int,
    vocab_size: int,
    steps: int,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    seeds: Sequence[int],
) -> Sampling:
    """The arrays of a config whose `problems` were checked: one row like the other but for its seed.

    steps: the new tokens that there is room for, of which max_new_tokens are wanted. stop_ids: what ends a row, which
    min_new_tokens puts off and which cannot be bad words, as in transformers.
    """
    stop_ids = list(stop_ids)
    banned = {word: -np.inf for word in config.bad_words_ids if word not in {(token,) for token in stop_ids}}
    # A bad word may also be a biased sequence: both are added.
    sequences = [*dict(config.sequence_bias).items(), *banned.items()]
    bias_V, first_bias_V = np.zeros((2, vocab_size), np.float32)
    for token, bias in dict(config.logit_bias).items():
        bias_V[token] += bias
    for sequence, bias in sequences:
        if len(sequence) == 1:
            bias_V[sequence[0]] += bias
    bias_V[list(config.suppress_tokens)] = -np.inf
    first_bias_V[list(config.begin_suppress_tokens)] = -np.inf
    longer = [(sequence, bias) for sequence, bias in sequences if len(sequence) > 1]
    size = _bucket(max((len(sequence) for sequence, _ in longer), default=0), _SEQUENCE_TOKENS)
    sequences_WM = np.full((_bucket(len(longer), _SEQUENCES), size), -1, np.int32)
    sequence_bias_W = np.zeros(len(sequences_WM), np.float32)
    for index, (sequence, bias) in enumerate(longer):
        sequences_WM[index, size - len(sequence) :] = sequence
        sequence_bias_W[index] = bias
    forced = dict(config.forced_tokens)
    if config.forced_eos_token_id is not None:
        forced[max_new_tokens - 1] = config.forced_eos_token_id
    forced_N = np.array([forced.get(step, -1) for step in range(steps)], np.int32)
    stop = np.full(_bucket(len(stop_ids), _STOP_SLOTS), -1, np.int32)
    stop[: len(stop_ids)] = stop_ids

    def per_row(value: float, dtype: type[np.generic]) -> Any:
        return np.full(batch, value, dtype)

    # Of NumPy's arrays, to be put in place at once: each jnp.asarray would compile a copy of its own.
    of_numpy: Any = Sampling
    sampling: Sampling = of_numpy(
        temperature=per_row(config.temperature if config.do_sample else 0, np.float32),
        top_k=per_row(config.top_k, np.int32),
        top_p=per_row(config.top_p, np.float32),
        min_p=per_row(config.min_p, np.float32),
        typical_p=per_row(config.typical_p, np.float32),
        epsilon_cutoff=per_row(config.epsilon_cutoff, np.float32),
        eta_cutoff=per_row(config.eta_cutoff, np.float32),
        repetition_penalty=per_row(config.repetition_penalty, np.float32),
        presence_penalty=per_row(config.presence_penalty, np.float32),
        frequency_penalty=per_row(config.frequency_penalty, np.float32),
        no_repeat_ngram=per_row(config.no_repeat_ngram_size, np.int32),
        min_new_tokens=per_row(config.min_new_tokens, np.int32),
        min_length=per_row(config.min_length, np.int32),
        seed=np.array([seed % 2**32 for seed in seeds], np.uint32),
        biased=np.bool_(bias_V.any()),
        bias_V=bias_V,
        first_bias_V=first_bias_V,
        forced_N=forced_N,
        forced_bos=np.int32(-1 if config.forced_bos_token_id is None else config.forced_bos_token_id),
        sequences_WM=sequences_WM,
        sequence_bias_W=sequence_bias_W,
        stop=stop,
    )
    return jax.device_put(sampling)


def choose(logits_BV: jax.Array, sampling: Sampling, step: jax.Array) -> jax.Array:
    """Token ids (B,) for processed logits: the best one, or a draw that depends on the row's seed and `step` only.

    step: () or one per row.
    """
    greedy_B = argmax(logits_BV)

    def draw(logits_BV: jax.Array) -> jax.Array:
        sampled_B = _categorical(filtered(logits_BV, sampling), sampling.seed, step)
        return jnp.where(sampling.temperature > 0, sampled_B, greedy_B)

    # Greedy batches skip the work, without another program.
    return lax.cond(jnp.any(sampling.temperature > 0), draw, lambda _: greedy_B, logits_BV)


def argmax(x_RV: jax.Array) -> jax.Array:
    """The first of the largest values of each row, or of those that are no number, (R,) int32: as jnp.argmax."""
    return lax.platform_dependent(x_RV, cpu=_argmax_in_passes, default=_plain_argmax)


def _plain_argmax(x_RV: jax.Array) -> jax.Array:
    return jnp.argmax(x_RV, axis=-1).astype(jnp.int32)


def _argmax_in_passes(x_RV: jax.Array) -> jax.Array:
    """Over vectors: XLA:CPU finds jnp.argmax number by number, and its maximum of NaN depends on where that is."""
    is_none_RV = jnp.isnan(x_RV)
    is_best_RV = x_RV == jnp.where(is_none_RV, -jnp.inf, x_RV).max(axis=-1, keepdims=True)
    is_best_RV = jnp.where(is_none_RV.any(axis=-1, keepdims=True), is_none_RV, is_best_RV)
    ids_V = jnp.arange(x_RV.shape[-1], dtype=jnp.int32)
    return jnp.where(is_best_RV, ids_V, x_RV.shape[-1]).min(axis=-1)


def filtered(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits that a sampled row is drawn from: at its temperature, -inf outside its filters.

    transformers' order, in which every filter sees what the ones before it left.
    """
    sampled_B = sampling.temperature > 0
    logits_BV = logits_BV / jnp.where(sampled_B, sampling.temperature, 1.0)[:, None]
    for apply, value_B, off in (
        (keep_top_k, sampling.top_k, jnp.int32(0)),
        (keep_top_p, sampling.top_p, 1.0),
        (keep_min_p, sampling.min_p, 0.0),
        (keep_typical_p, sampling.typical_p, 1.0),
        (cut_epsilon, sampling.epsilon_cutoff, 0.0),
        (cut_eta, sampling.eta_cutoff, 0.0),
    ):
        # A greedy row makes no work for the others.
        logits_BV = apply(logits_BV, jnp.where(sampled_B, value_B, off))
    return logits_BV


def log_probabilities(
    logits_BV: jax.Array, chosen_B: jax.Array, wanted: jax.Array, top: int = 20
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities (B,) of the chosen tokens; ids (B, K) of the `top` most probable ones and theirs (B, K).

    Of the model's own distribution, for which logits_BV are its logits before any processor. Zeros, at no cost, where
    `wanted` () is false. K is `top`, or the whole vocabulary where that is smaller.
    """
    batch, vocab_size = logits_BV.shape
    top = min(top, vocab_size)

    def compute(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits_BV = logits_BV.astype(jnp.float32)
        total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
        best_BK, ids_BK = lax.top_k(logits_BV, top)
        chosen_B1 = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)
        return (chosen_B1 - total_B1)[:, 0], ids_BK, best_BK - total_B1

    def skip(_: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        nothing_BK = jnp.zeros((batch, top), jnp.float32)
        return jnp.zeros((batch,), jnp.float32), nothing_BK.astype(jnp.int32), nothing_BK

    return lax.cond(wanted, compute, skip, logits_BV)


def _categorical(logits_BV: jax.Array, seed_B: jax.Array, step: jax.Array) -> jax.Array:
    """A token of each row: first the block of the vocabulary that it is in, then the token of that block.

    Two random numbers per row: one for every token, as jax.random.categorical draws them, would take longer than
    everything else together. Two and not one, so that a rare token is not below what a float32 can tell apart.
    """

    def numbers(seed: jax.Array, step: jax.Array) -> jax.Array:
        # The generator is named, so that a seed means the same on every machine and configuration.
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step), (2,))

    numbers_B2 = jax.vmap(numbers)(seed_B, jnp.broadcast_to(step, seed_B.shape))
    batch, vocab_size = logits_BV.shape
    size = 1 << vocab_size.bit_length() // 2
    weights_BV = jnp.exp(logits_BV - logits_BV.max(axis=-1, keepdims=True))
    blocks = jnp.pad(weights_BV, ((0, 0), (0, -vocab_size % size))).reshape(batch, -1, size)
    block_B = _pick(blocks.sum(axis=-1), numbers_B2[:, 0])
    return block_B * size + _pick(blocks[jnp.arange(batch), block_B], numbers_B2[:, 1])


def _pick(weights_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Indices (B,) drawn by weight; never one of weight 0, whatever the order in which a sum is rounded."""
    sums_BN = jnp.where(weights_BN > 0, jnp.cumsum(weights_BN, axis=-1), 0.0)
    return jnp.argmax(sums_BN > (uniform_B * sums_BN.max(axis=-1))[:, None], axis=-1).astype(jnp.int32)


def _bucket(size: int, least: int) -> int:
    return max(least, 1 << (size - 1).bit_length() if size else 0)
