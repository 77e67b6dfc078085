"""Blocks of every shape: which norm stands where, and what is added to what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_attention import attention, fill, rms

from bombus.layers import Attention, AttentionContext, Block, GatedFeedForward, RMSNorm

D, F, N, K, H, T, EPSILON = 20, 28, 4, 2, 8, 6, 0.02
NORMS = ("self_attention_norm", "self_attention_output_norm", "output_norm", "ffn_output_norm")
SHAPES = {
    "llama": ("self_attention_norm", "output_norm"),
    "olmo2": ("self_attention_output_norm", "ffn_output_norm"),
    "gemma2": NORMS,
    "bare": (),
}
PARALLEL = {"gpt_neox": ("self_attention_norm", "output_norm"), "phi": ("self_attention_norm",), "all four": NORMS}


def _block(norms: tuple[str, ...], *, parallel: bool) -> Block:
    return Block(
        self_attention=Attention(D, N, K, H, rotary=None),
        ffn=GatedFeedForward(D, F, activation="silu"),
        parallel=parallel,
        **{name: RMSNorm(D, epsilon=EPSILON) for name in norms},
    )


def _expected(values: dict[str, np.ndarray], x: np.ndarray, *, parallel: bool) -> np.ndarray:
    def norm(y: np.ndarray, name: str) -> np.ndarray:
        return rms(y, values[f"{name}.scale"], EPSILON) if f"{name}.scale" in values else y

    def ffn(y: np.ndarray) -> np.ndarray:
        gate = y @ values["ffn.gate.kernel"].T
        inner = gate / (1 + np.exp(-gate)) * (y @ values["ffn.intermediate.kernel"].T)
        return norm(inner @ values["ffn.output.kernel"].T, "ffn_output_norm")

    own = {path.removeprefix("self_attention."): value for path, value in values.items()}
    read = norm(x, "self_attention_norm")
    mixed = norm(attention(own, read, heads=(N, K), head_dim=H), "self_attention_output_norm")
    if parallel:
        return x + mixed + ffn(norm(x, "output_norm") if "output_norm.scale" in values else read)
    return x + mixed + ffn(norm(x + mixed, "output_norm"))


@pytest.mark.parametrize(
    ("norms", "parallel"),
    [
        *(pytest.param(norms, False, id=name) for name, norms in SHAPES.items()),
        *(pytest.param(norms, True, id=name) for name, norms in PARALLEL.items()),
    ],
)
def test_block_is_its_definition(norms: tuple[str, ...], parallel: bool) -> None:
    """Against float64; with these norms and no others as parameters."""
    block = _block(norms, parallel=parallel)
    values = fill(block)
    assert {path.partition(".")[0] for path in values} == {*norms, "self_attention", "ffn"}
    x = np.random.default_rng(1).standard_normal((1, T, D)).astype(np.float32)

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        context = AttentionContext(positions_BT=jnp.arange(T)[None], keys_BS=jnp.ones((1, T), jnp.bool_))
        return block(x, context)[0]

    found = run(x)
    np.testing.assert_allclose(found[0], _expected(values, x[0].astype(np.float64), parallel=parallel), atol=2e-5)
    assert jax.eval_shape(run, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)).dtype == jnp.bfloat16
