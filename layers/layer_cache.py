"""The cache of one layer: all its slots or a ring of the last ones, and what the queries of new tokens read of it.

Shapes: B batch, T new tokens, S cached tokens, K key/value heads, H head size, X = B*K.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax

from bombus.kernels.native_write import heads_first
from bombus.layers.context import AttentionContext
from bombus.layers.stored import Stored


class Source(NamedTuple):
    """Keys and values that queries read, and which of them each query sees, (B, T, S)."""

    keys: Stored
    values: Stored
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """The keys and values of a layer, and in the type that they were computed in those of the last `recent` slots.

    values: None where the keys are the values as well. Fewer slots than the cache has are a ring: slot s is at s % S.
    """

    keys: Stored
    values: Stored | None
    recent_keys: Stored | None = None
    recent_values: Stored | None = None
    recent: int = field(default=0, metadata={"static": True})

    @property
    def least_slots(self) -> int:
        """The slots of its smallest part."""
        return self.keys.slots if self.recent_keys is None else self.recent_keys.slots

    def updated(
        self, keys_BTKH: jax.Array, values_BTKH: jax.Array | None, context: AttentionContext, window: int | None = None
    ) -> tuple[LayerCache, list[Source]]:
        """This with the keys and values of new tokens, and what the tokens' queries read, which see `window` slots.

        Each key is in one source that a query sees: quantized if it is `recent` slots before the query or more.
        """
        new = (keys_BTKH, values_BTKH)
        keys, values, sources = _updated(self.keys, self.values, new, context, window, self.recent)
        if self.recent_keys is None:
            return replace(self, keys=keys, values=values), sources
        near = self.recent if window is None else min(window, self.recent)
        recent_keys, recent_values, more = _updated(self.recent_keys, self.recent_values, new, context, near, 0)
        whole = LayerCache(
            keys=keys, values=values, recent_keys=recent_keys, recent_values=recent_values, recent=self.recent
        )
        return whole, sources + more

    def take(self, rows_X: jax.Array) -> LayerCache:
        """These rows and heads."""
        parts = (self.keys, self.values, self.recent_keys, self.recent_values)
        keys, values, recent_keys, recent_values = (None if part is None else part.take(rows_X) for part in parts)
        assert keys is not None
        return LayerCache(
            keys=keys, values=values, recent_keys=recent_keys, recent_values=recent_values, recent=self.recent
        )


def _updated(
    keys: Stored,
    values: Stored | None,
    new: tuple[jax.Array, jax.Array | None],
    context: AttentionContext,
    window: int | None,
    skip: int,
) -> tuple[Stored, Stored | None, list[Source]]:
    """Keys and values with the new ones, and what queries read of them: `window` slots but not the last `skip`."""
    assert context.length is not None
    length, size, tokens = context.length, keys.slots, new[0].shape[1]
    ring = size < context.capacity
    first = length % size if ring else length

    def write(old: Stored, new_BTKH: jax.Array) -> tuple[Stored, Stored]:
        encoded = old.encoded(heads_first(new_BTKH))
        if ring and tokens > 1:
            return encoded, old.written_around(encoded, length)
        # Plain values go where they belong head by head: to put heads first is a pass over all of them.
        return encoded, old.written(encoded if old.scale is not None else old.encoded(new_BTKH), first)

    new_keys, all_keys = write(keys, new[0])
    new_values, all_values = new_keys, all_keys
    if values is not None and new[1] is not None:
        new_values, all_values = write(values, new[1])
    kept = None if values is None else all_values
    if not ring:
        sources = [Source(all_keys, all_values, context.mask(window, skip=skip))]
    elif tokens == 1:
        sources = [Source(all_keys, all_values, context.mask(window, skip=skip, place="after", size=size))]
    else:
        # Writing may overwrite what the first of the new tokens still see.
        before = context.mask(window, skip=skip, place="before", size=size)
        sources = [
            Source(keys, keys if values is None else values, before),
            Source(new_keys, new_values, context.mask(window, skip=skip, place="new")),
        ]
    return all_keys, kept, sources
