"""Writing into a cache: what is written, and that nothing else of it is read or written, nor copied."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from attention_cases import TYPES, drawn
from native_weights import KERNELS, REASON

from bombus.kernels.native_write import write_slots
from bombus.layers import attend_to
from bombus.layers.layer_cache import Source
from bombus.layers.stored import Stored

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
IN_PLACE = (np.float32, np.int8, np.uint8)  # what XLA writes in place itself


def stored(side: Any) -> Stored:
    return Stored(**{name: None if part is None else jnp.asarray(part) for name, part in side._asdict().items()})


@pytest.mark.parametrize("format", TYPES)
def test_nothing_is_copied_in_a_loop(format: str) -> None:
    """A loop that writes a token and attends: the cache stays where it is, of which XLA makes no second one."""
    slots, size = 4096, 64
    random = np.random.default_rng(13)
    arrays = drawn((format, format), (2, slots, size), np.ones((1, 1, slots), bool), random).arrays
    keys, values = stored(arrays.keys), stored(arrays.values)

    @partial(jax.jit, donate_argnums=(1, 2))
    def run(q: jax.Array, keys: Stored, values: Stored) -> Any:
        def step(at: jax.Array, carry: Any) -> Any:
            q, keys, values = carry
            new = q[:, 0, :2].reshape(2, 1, size)
            keys, values = (side.written(side.encoded(new), at) for side in (keys, values))
            mask = (jnp.arange(slots) <= at)[None, None]
            return attend_to(q, [Source(keys, values, mask)]), keys, values

        return jax.lax.fori_loop(0, 5, step, (q, keys, values))

    q = jnp.asarray(random.standard_normal((1, 1, 4, size)), jnp.float32)
    program = run.lower(q, keys, values).compile()
    text = program.as_text()
    assert "bombus_attention" in text
    assert program.memory_analysis().temp_size_in_bytes < 2 * slots + 20_000  # the mask
    if TYPES[format] not in IN_PLACE:
        assert text.count('custom_call_target="bombus_write"') == 2
    assert np.isfinite(np.asarray(run(q, keys, values)[0])).all()


@pytest.mark.parametrize("shape", [(3, 20, 16), (3, 20)], ids=str)
def test_writing_slots(shape: tuple[int, ...]) -> None:
    """At the first, the last, and where that would be past the end; also without donation, and under vmap and jvp."""
    random = np.random.default_rng(14)
    for dtype in (*TYPES.values(), ml_dtypes.float8_e5m2):
        old = random.standard_normal(shape).astype(dtype)
        for tokens in (1, 5, 20):
            new = random.standard_normal((3, tokens, *shape[2:])).astype(dtype)
            lowered = jax.jit(write_slots).lower(old, new, np.int32(0)).as_text()
            assert ("@bombus_write" in lowered) == (dtype not in IN_PLACE)
            for first in (0, 7, 20 - tokens, 100):
                at = min(first, 20 - tokens)
                expected = old.copy()
                expected[:, at : at + tokens] = new
                given = jnp.asarray(old)
                np.testing.assert_array_equal(jax.jit(write_slots)(given, new, np.int32(first)), expected)
                np.testing.assert_array_equal(given, old)
    stack = np.stack([old, old[::-1]]).astype(ml_dtypes.bfloat16)
    rows = np.stack([new[:, :2], new[:, 2:4]]).astype(ml_dtypes.bfloat16)
    found = jax.jit(jax.vmap(write_slots, (0, 0, 0)))(stack, rows, np.array([3, 9], np.int32))
    for index, first in enumerate((3, 9)):
        expected = stack[index].copy()
        expected[:, first : first + 2] = rows[index]
        np.testing.assert_array_equal(found[index], expected)
    given = [jnp.asarray(a, jnp.bfloat16) for a in (old, new[:, :2])]
    slopes = jax.jit(
        jax.grad(lambda old, new: (2 * write_slots(old, new, jnp.int32(4))).astype(jnp.float32).sum(), (0, 1))
    )(*given)
    expected = np.full(shape, 2.0)
    expected[:, 4:6] = 0
    np.testing.assert_array_equal(slopes[0].astype(jnp.float32), expected)
    assert (np.asarray(slopes[1], np.float32) == 2).all()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.int8], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_writing_what_lies_token_by_token(dtype: Any, batch: int) -> None:
    """As heads first, without a pass that puts them there; also under vmap and jvp."""
    random = np.random.default_rng(15)
    heads, slots, size = 4, 9, 6
    old = random.integers(-9, 9, (batch * heads, slots, size)).astype(dtype)
    for tokens in (1, 5):
        new = random.integers(-9, 9, (batch, tokens, heads, size)).astype(dtype)
        expected = old.copy()
        expected.reshape(batch, heads, slots, size)[:, :, 3 : 3 + tokens] = new.transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(jax.jit(write_slots)(old, new, np.int32(3)), expected)
        found = jax.jit(jax.vmap(write_slots, (0, 0, None)))(old[None], new[None], np.int32(3))
        np.testing.assert_array_equal(found[0], expected)
        if dtype == ml_dtypes.bfloat16:
            text = jax.jit(write_slots).lower(old, new, np.int32(3)).compile().as_text()
            assert "bombus_write" in text
            assert "transpose(" not in text
    if dtype != np.int8:
        weights = random.standard_normal(old.shape).astype(np.float32)

        def weighed(new: jax.Array) -> jax.Array:
            return (write_slots(jnp.asarray(old), new, jnp.int32(3)).astype(jnp.float32) * weights).sum()

        slopes = np.asarray(jax.jit(jax.grad(weighed))(jnp.asarray(new)), np.float32)
        of_heads = weights.reshape(batch, heads, slots, size)[:, :, 3:8].transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(slopes, of_heads.astype(dtype).astype(np.float32))
