"""Quantized caches and rings in a compiled loop: updated in place, and never all dequantized at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bombus.layers import Cache
from bombus.models import build_model
from bombus.models.mistral import MistralSpec

BATCH, SLOTS, BLOCKS, HEADS, SIZE = 4, 1024, 5, 2, 32
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_blocks": BLOCKS, "num_heads": 4}


MIXED = {"keys": "int8", "values": "int4", "recent": 16}
KINDS: list[tuple[Any, int | None]] = [
    *((None, None), ("int8", None), (MIXED, None), (None, 256)),
]


@pytest.mark.parametrize(("format", "window"), KINDS)
def test_a_decode_loop_dequantizes_one_layer_at_a_time(format: Any, window: int | None) -> None:
    """Temporaries stay below the float32 keys and values of one layer of five; without codes, far below."""
    spec = MistralSpec(**SIZES, num_kv_heads=HEADS, head_dim=SIZE, sliding_window=window)
    model = build_model(spec)
    cache = jax.eval_shape(lambda: model.init_cache(BATCH, SLOTS, format=format))
    token = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)

    def step(params: Any, state: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
        output = model.apply(params, state[0], cache=state[1])
        return jnp.argmax(output.logits, -1).astype(jnp.int32), output.cache

    def loop(params: Any, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return lax.while_loop(lambda state: state[1].length < SLOTS, lambda state: step(params, state), (token, cache))

    compiled = jax.jit(loop, donate_argnums=2).lower(model.abstract_params, token, cache).compile()
    memory = compiled.memory_analysis()
    one_layer = 2 * BATCH * HEADS * (window or SLOTS) * SIZE * 4
    assert memory.temp_size_in_bytes < (one_layer if format else one_layer // 2)
    assert memory.alias_size_in_bytes >= cache.nbytes
