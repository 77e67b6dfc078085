"""KV cache of static length, of all layers of a model.

Shapes: B batch, S cached tokens, R rows taken, K key/value heads, H head size, X = B*K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from bombus.layers.cache_format import QUANTIZED, CacheFormat, CacheShape
from bombus.layers.cache_report import CacheReport, layer_report, nbytes
from bombus.layers.layer_cache import LayerCache
from bombus.layers.stored import Stored, empty_stored
from bombus.policies.errors import GenerationError, Problem
from bombus.policies.formats import DType


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of every layer, (B*K, S, H) each and NOT repeated for the query heads; see CacheShape.

    Row and head are one axis, because that is the form of the product that reads them: with a reshape in between
    XLA:CPU fuses the write twice and copies the whole cache three times per step (benchmarks/README.md).
    `mask` (B, S) marks the slots that hold real tokens, `length` () counts the slots used, padding included,
    and `positions` (B,) is the position that each row's next token has.
    lookback: how many of the last slots `rewound` can take back where a layer is a ring.
    """

    layers: tuple[LayerCache, ...]
    mask: jax.Array
    length: jax.Array
    positions: jax.Array
    lookback: int = field(default=0, metadata={"static": True})

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of all layers: codes or values, scales and zero points."""
        return nbytes(self.layers)

    @property
    def bytes_per_token(self) -> float:
        """`nbytes` for each slot of each row."""
        return self.nbytes / self.mask.size

    @property
    def report(self) -> CacheReport:
        """A table of what the layers are kept as, and of the bytes that it takes."""
        return layer_report(self.layers, rows=self.mask.shape[0], slots=self.capacity)

    def take_rows(self, rows_R: jax.Array) -> Cache:
        """The cache of these rows: any number of them, in any order and more than once. Indices may be traced."""
        heads = self.layers[0].keys.codes.shape[0] // self.mask.shape[0]
        rows_X = (rows_R[:, None] * heads + jnp.arange(heads, dtype=rows_R.dtype)).reshape(-1)
        return replace(
            self,
            layers=tuple(layer.take(rows_X) for layer in self.layers),
            mask=jnp.take(self.mask, rows_R, axis=0, mode="clip"),
            positions=jnp.take(self.positions, rows_R, mode="clip"),
        )

    def rewound(self, slots: jax.Array | int) -> Cache:
        """Without the last `slots` () of every row, as if they had never been written.

        Raises GenerationError for more slots than a ring can give back, where their number is known.
        """
        rings = any(layer.least_slots < self.capacity for layer in self.layers)
        if rings and not isinstance(slots, jax.core.Tracer) and int(slots) > self.lookback:
            raise GenerationError(
                Problem(
                    subject="cache",
                    message="cannot be rewound so far: some layers hold the last slots only",
                    expected=f"at most {self.lookback} slots",
                    found=str(int(slots)),
                    remedy="make the cache with a larger lookback",
                )
            )
        length = self.length - jnp.asarray(slots, jnp.int32)
        kept_BS = self.mask & (jnp.arange(self.capacity, dtype=jnp.int32) < length)
        removed_B = (self.mask & ~kept_BS).sum(axis=1, dtype=jnp.int32)
        return replace(self, mask=kept_BS, length=length, positions=self.positions - removed_B)


def empty_cache(
    windows: Sequence[int | None],
    batch: int,
    capacity: int,
    *,
    shape: CacheShape,
    dtype: DType,
    format: CacheFormat | None = None,
    lookback: int = 0,
) -> Cache:
    """A cache with `capacity` free slots per row, for layers whose queries see these windows; None for all slots.

    A layer with a window keeps as many slots, and `lookback` more so that as many can be taken back. Raises
    PolicyError for a format that does not fit.
    """
    format = CacheFormat() if format is None else format
    format.check(len(windows), shape)
    layers = tuple(
        _empty_layer(format, index, len(windows), window, batch, capacity, shape, dtype, lookback)
        for index, window in enumerate(windows)
    )
    return Cache(
        layers=layers,
        mask=jnp.zeros((batch, capacity), jnp.bool_),
        length=jnp.zeros((), jnp.int32),
        positions=jnp.zeros((batch,), jnp.int32),
        lookback=lookback,
    )


def _empty_layer(
    format: CacheFormat,
    index: int,
    num_layers: int,
    window: int | None,
    batch: int,
    capacity: int,
    shape: CacheShape,
    dtype: DType,
    lookback: int,
) -> LayerCache:
    names = format.of_layer(index, num_layers)
    recent = format.recent if set(names) & set(QUANTIZED) else 0
    if window is not None and recent >= window:  # nothing that is quantized would be read
        names, recent = (None, None), 0
    rows = batch * shape.num_kv_heads

    def empty(name: str | None, slots: int, size: int, largest: Sequence[float] | None) -> Stored:
        fixed_X = None if largest is None else jnp.tile(jnp.asarray(largest, jnp.float32), batch)
        return empty_stored(name, (rows, slots, size), dtype, zero_points=format.zero_points, fixed_X=fixed_X)

    largest = format.head_scales[index] if format.scales == "head" else (None, None)
    slots = capacity if window is None else min(capacity, window + lookback)
    near = min(slots, recent + lookback)
    has_values = shape.value_dim > 0
    return LayerCache(
        keys=empty(names[0], slots, shape.key_dim, largest[0]),
        values=empty(names[1], slots, shape.value_dim, largest[1]) if has_values else None,
        recent_keys=empty(None, near, shape.key_dim, None) if recent else None,
        recent_values=empty(None, near, shape.value_dim, None) if recent and has_values else None,
        recent=recent,
    )
