"""Calibration of quantized caches: how large the keys and values of every head become on given tokens.

Shapes: B batch, T tokens, S cached tokens, K key/value heads, H head size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from bombus.layers import CacheFormat, CacheFormatLike, HeadScales, Stored, as_cache_format
from bombus.models.model import Model
from bombus.models.tree import Params


def calibrate_cache(
    model: Model, params: Params, tokens_BT: jax.Array, *, mask: jax.Array | None = None, format: CacheFormatLike
) -> CacheFormat:
    """The format with a fixed scale for every head, measured on tokens (B, T); mask (B, T) is False at padding."""
    scales = _measured_heads(model, params, tokens_BT, mask)
    return replace(as_cache_format(format), scales="head", head_scales=scales)


def _measured_heads(model: Model, params: Params, tokens_BT: jax.Array, mask: jax.Array | None) -> HeadScales:
    """For each layer the largest magnitudes of its keys, after rotary, and of its values, by head."""
    tokens = jnp.asarray(tokens_BT)
    real = jnp.ones(tokens.shape, jnp.bool_) if mask is None else jnp.asarray(mask, jnp.bool_)
    found = jax.device_get(_magnitudes(model, params, tokens, real))
    return tuple((tuple(map(float, keys)), tuple(map(float, values))) for keys, values in found)


@partial(jax.jit, static_argnames="model")
def _magnitudes(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array
) -> list[tuple[jax.Array | tuple[()], ...]]:
    batch, tokens = tokens_BT.shape
    # With so much lookback no layer is a ring, and every key is there in the end.
    empty = model.init_cache(batch, tokens, lookback=tokens)
    cache = model.apply(params, tokens_BT, mask=mask_BT, cache=empty).cache
    assert cache is not None

    def largest(stored: Stored | None) -> jax.Array | tuple[()]:
        if stored is None:
            return ()
        of_slots_BKS = jnp.abs(stored.codes).max(axis=-1).astype(jnp.float32).reshape(batch, -1, tokens)
        return jnp.where(mask_BT[:, None], of_slots_BKS, 0.0).max(axis=(0, 2))

    return [(largest(layer.keys), largest(layer.values)) for layer in cache.layers]
