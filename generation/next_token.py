"""The next token of each row: one call of a C++ kernel on CPU, and XLA's operations everywhere else.

What the settings can ask for is 200 fusions of XLA's, in a program of eight calls a block. They take half of the time
in which it is compiled and a third of its memory, also where nothing is asked for.
Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.history import History
from bombus.generation.processors import process
from bombus.generation.sampling import Sampling, choose
from bombus.kernels import native


@jax.jit
def next_token(logits_BV: jax.Array, sampling: Sampling, step: jax.Array, history: History | None = None) -> jax.Array:
    """Token ids (B,) for logits: the best one, or a draw that depends on the row's seed and `step` only.

    step: () or one per row. With a history the logits are the model's, and the settings' processors come first.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if native.library().loaded is None:
        return _with_xla(logits_BV, sampling, step, history)
    return lax.platform_dependent(logits_BV, sampling, step, history, cpu=_native, default=_with_xla)


def _with_xla(logits_BV: jax.Array, sampling: Sampling, step: jax.Array, history: History | None) -> jax.Array:
    if history is not None:
        logits_BV = process(logits_BV, history, sampling)
    return choose(logits_BV, sampling, step)


def _native(logits_BV: jax.Array, sampling: Sampling, step: jax.Array, history: History | None) -> jax.Array:
    rows = logits_BV.shape[:1]
    # In the order of kernels/cpp/ffi_next_token.cc.
    arguments = [
        *(logits_BV, jnp.broadcast_to(step, rows), sampling.forced_N, sampling.sequences_WM, sampling.stop),
        *(sampling.temperature, sampling.top_p, sampling.min_p, sampling.typical_p),
        *(sampling.epsilon_cutoff, sampling.eta_cutoff),
        *(sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty),
        *(sampling.top_k, sampling.no_repeat_ngram, sampling.min_new_tokens, sampling.min_length),
        *(sampling.seed, sampling.biased, sampling.bias_V, sampling.first_bias_V),
        *(sampling.forced_bos, sampling.sequence_bias_W),
    ]
    if history is not None:
        arguments += [history.tokens_BL, history.real_BL, history.length]
    made = jax.ShapeDtypeStruct(rows, jnp.int32)
    call = jax.ffi.ffi_call("bombus_next_token", made, vmap_method="sequential")
    result = call(*arguments, prompt_slots=-1 if history is None else history.prompt_slots)
    return native.varying_as(result, *arguments)
