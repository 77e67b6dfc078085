"""AttentionContext: what all layers of one call share. What they ask of it is made once.

Shapes: B batch, T query tokens, S key tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from bombus.layers.rotary import Rotary

# The slots of a source: all, those that a ring holds before or after the new tokens are written, and the new tokens.
Place = Literal["all", "before", "after", "new"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions_BT", "keys_BS", "length"),
    meta_fields=(),
    drop_fields=("_made",),
)
@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What all layers of one call share.

    positions_BT: the position of every query. keys_BS: which slots hold real tokens, these queries' own included.
    length: the slot of the first query in the cache; None without a cache. What layers ask for is made once.
    """

    positions_BT: jax.Array
    keys_BS: jax.Array
    length: jax.Array | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def capacity(self) -> int:
        """The number of slots, in a ring or not."""
        return self.keys_BS.shape[1]

    def tables(self, rotary: Rotary, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """The rotary tables of the positions, for heads of this size."""
        return self._once((rotary, head_dim), lambda: rotary.tables(self.positions_BT, head_dim))

    def mask(self, window: int | None = None, *, skip: int = 0, place: Place = "all", size: int = 0) -> jax.Array:
        """Which keys each query sees, (B, T, S): real tokens up to itself, and only the last `window` of the slots.

        skip: without the last `skip` of these. place: which slots the keys are of, if not all; size: of the ring.
        """
        return self._once((window, skip, place, size), lambda: self._mask(window, skip, place, size))

    def _mask(self, window: int | None, skip: int, place: Place, size: int) -> jax.Array:
        first = jnp.int32(0) if self.length is None else self.length
        tokens = self.positions_BT.shape[1]
        new_T = first + jnp.arange(tokens, dtype=jnp.int32)
        queries_T1 = new_T[:, None]
        keys_BS = self.keys_BS
        if place == "all":
            slots_S = jnp.arange(self.capacity, dtype=jnp.int32)
        elif place == "new":
            slots_S = new_T
            keys_BS = lax.dynamic_slice_in_dim(keys_BS, first, tokens, axis=1)
        else:
            newest = first - 1 if place == "before" else first + tokens - 1
            slots_S = newest - (newest - jnp.arange(size, dtype=jnp.int32)) % size
            keys_BS = jnp.take(keys_BS, jnp.maximum(slots_S, 0), axis=1) & (slots_S >= 0)
        seen_TS = slots_S[None, :] <= queries_T1 - skip
        if window is not None:
            seen_TS = seen_TS & (slots_S[None, :] > queries_T1 - window)
        return keys_BS[:, None, :] & seen_TS[None]

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
