"""x times a stored kernel: the one place that decides how a product is computed.

Shapes: R rows of x, I inputs, O outputs. Kernels are (O, I), as in the checkpoint. Results are float32.

What XLA:CPU does, measured (benchmarks/README.md, "FP8 product"):
- Anything computed from the weights alone is loop-invariant in a generation loop, so XLA hoists it and holds the
  whole model dequantized; `optimization_barrier` is gone before that pass. It does not hoist out of a
  conditional, so weights are converted inside one, whose condition is always true and XLA cannot know it.
- A float8 operand of any other operation is first widened to float16 as a whole, so codes are sliced as bytes.
- A float16 product is done in float32, by way of a copy of the kernel that is hoisted as well.
- A bfloat16 product with one row is slow and converts the kernel; with two rows and float32 output it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels import native
from bombus.kernels.weight import Weight, as_bits, dequantize, from_bits, half_values, row_values

FEW_ROWS = 16
_TILE_OUTPUTS = 128  # a decoded tile stays in the L2 cache


def product(x: jax.Array, weight: Weight, *, compute_type: jnp.dtype) -> jax.Array:
    """x (..., I) times a stored weight (O, I), computed in `compute_type`: (..., O), summed and returned in float32.

    A weight that is stored otherwise than in `compute_type` is converted while the product runs: with few rows tile
    by tile, with many as a whole, and never more than this one weight.
    """
    return products(x, (weight,), compute_type=compute_type)[0]


# jit: equal shapes are traced and lowered once for all layers of a model. XLA inlines the call.
@partial(jax.jit, static_argnames=("compute_type",))
def products(x: jax.Array, weights: tuple[Weight, ...], *, compute_type: jnp.dtype) -> tuple[jax.Array, ...]:
    """x times each of the weights, as `product`: what reads the same x runs together."""
    x_RI = x.reshape(-1, x.shape[-1]).astype(compute_type)
    runs = [native.runs(weight, compute_type) for weight in weights]
    taken = tuple(weight for weight, run in zip(weights, runs, strict=True) if run)
    together = iter(lax.platform_dependent(x_RI, taken, cpu=_native, default=_elsewhere) if taken else ())
    made = [next(together) if run else _with_xla(x_RI, weight) for weight, run in zip(weights, runs, strict=True)]
    return tuple(y_RO.reshape(*x.shape[:-1], y_RO.shape[-1]) for y_RO in made)


@jax.custom_jvp
def _native(x_RI: jax.Array, weights: tuple[Weight, ...]) -> tuple[jax.Array, ...]:
    return native.multiply(x_RI, weights)


@_native.defjvp
def _native_jvp(primals: Any, tangents: Any) -> Any:
    return _native(*primals), _tangents(primals, tangents)


def _tangents(primals: Any, tangents: Any) -> Any:
    """What `_native` and `_by_tiles` go on with in derivatives: in x, and in the values of a plain weight."""
    (x_RI, weights), (x_tangent_RI, weight_tangents) = primals, tangents
    return tuple(
        _tangent(x_RI, weight, x_tangent_RI, tangent) for weight, tangent in zip(weights, weight_tangents, strict=True)
    )


def _tangent(x_RI: jax.Array, weight: Weight, x_tangent_RI: jax.Array, weight_tangent: Weight) -> jax.Array:
    if not weight.format.is_low:
        dtype = x_RI.dtype
        return dot(x_tangent_RI, weight.codes.astype(dtype)) + dot(x_RI, weight_tangent.codes.astype(dtype))

    # Weights are converted again on the way back: kept from the way forward they would be all there at once. Without
    # the barrier of `whole`, in which the weight would be as linear as x is.
    @partial(jax.checkpoint, prevent_cse=False)
    def multiply(x_RI: jax.Array, weight: Weight) -> jax.Array:
        return dot(x_RI, dequantize(weight, x_RI.dtype))

    return multiply(x_tangent_RI, weight)


def _elsewhere(x_RI: jax.Array, weights: tuple[Weight, ...]) -> tuple[jax.Array, ...]:
    return tuple(
        whole(x_RI, weight) if weight.format.is_low or weight.codes.dtype != x_RI.dtype else _plain(x_RI, weight)
        for weight in weights
    )


def _with_xla(x_RI: jax.Array, weight: Weight) -> jax.Array:
    cpu = _by_tiles if x_RI.shape[0] <= FEW_ROWS else partial(_guarded, whole)
    if weight.format.is_low or weight.codes.dtype != x_RI.dtype:
        return lax.platform_dependent(x_RI, weight, cpu=cpu, default=whole)
    if x_RI.dtype == jnp.float16:
        return lax.platform_dependent(x_RI, weight, cpu=cpu, default=_plain)
    return _plain(x_RI, weight)


@jax.custom_jvp
def _by_tiles(x_RI: jax.Array, weight: Weight) -> jax.Array:
    return by_tiles(x_RI, weight)


@_by_tiles.defjvp
def _by_tiles_jvp(primals: Any, tangents: Any) -> Any:
    # A tile is sliced as bits, which have no derivative.
    (x_RI, weight), (x_tangent, weight_tangent) = primals, tangents
    return _by_tiles(x_RI, weight), _tangents((x_RI, (weight,)), (x_tangent, (weight_tangent,)))[0]


def _plain(x_RI: jax.Array, weight: Weight) -> jax.Array:
    rows = x_RI.shape[0]
    if rows == 1 and x_RI.dtype != jnp.float32:
        x_RI = jnp.pad(x_RI, ((0, 1), (0, 0)))
    return dot(x_RI, weight.codes)[:rows]


def dot(x: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """x (R, I) or (I,) times kernel, (R, O) or (O,) in float32."""
    contract_inputs = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, kernel_OI, contract_inputs, preferred_element_type=jnp.float32)


def whole(x_RI: jax.Array, weight: Weight) -> jax.Array:
    """x (R, I) times the weight, (R, O): converted as a whole to the type of x."""
    # The barrier ties the codes to x, so that accelerators do not dequantize ahead of time or outside a loop.
    x_RI, weight = lax.optimization_barrier((x_RI, weight))
    return dot(x_RI, dequantize(weight, x_RI.dtype))


def with_values(
    function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, weight: Weight, *, compute_type: jnp.dtype
) -> jax.Array:
    """function(x, values): for products of another form than `product`, with the whole weight (O, I) at once.

    Both are in `compute_type`; the values are made while it runs, of this one weight only, and gone afterwards.
    """

    def convert(x: jax.Array, weight: Weight) -> jax.Array:
        x, weight = lax.optimization_barrier((x, weight))
        return function(x, dequantize(weight, compute_type))

    return lax.platform_dependent(x.astype(compute_type), weight, cpu=partial(_guarded, convert), default=convert)


def _guarded(run: Callable[[jax.Array, Weight], jax.Array], x: jax.Array, weight: Weight) -> jax.Array:
    """run(x, weight) on CPU, which converts one weight at a time: with many rows that costs little."""
    bits = lax.bitcast_convert_type(x.reshape(-1)[0].astype(jnp.float32), jnp.int32)
    result = jax.eval_shape(run, x, weight)
    return lax.cond(
        (bits | 1) != 0,  # always; see the docstring of the module
        run,
        lambda *arguments: native.varying_as(jnp.zeros(result.shape, result.dtype), *jax.tree.leaves(arguments)),
        *(x, weight),
    )


def by_tiles(x_RI: jax.Array, weight: Weight, expert: jax.Array | None = None) -> jax.Array:
    """For few rows on CPU: a tile of outputs at a time is converted and used in the caches, (R, O).

    expert: the one whose weight is meant, where `weight` is a stack; of its codes there is no copy either.
    """
    outputs = weight.shape[0]
    rows = x_RI.shape[0]
    # With few rows a product waits for memory: float32 arithmetic costs nothing, and rounds less.
    compute_type = jnp.dtype(jnp.float32)
    # A single row as a vector: XLA:CPU's product of a matrix and a vector, without copies around it.
    x = x_RI[0].astype(compute_type) if rows == 1 else x_RI.astype(compute_type)
    # At least two tiles: XLA unrolls a loop of one, and the conditional and its protection with it. The last
    # tile starts early enough to be whole and computes some outputs again.
    tile = min(_TILE_OUTPUTS, max(1, -(-outputs // 2)))
    tiles = -(-outputs // tile)
    codes = weight.codes
    if expert is not None:
        weight = replace(weight.expert(expert), codes=codes)

    def compute(first: jax.Array, expert: jax.Array | None, x: jax.Array, weight: Weight) -> jax.Array:
        codes, rows = _sliced(weight.codes, expert, first, tile), first + jnp.arange(tile)
        if weight.format.packed:
            halves = half_values(weight, rows, codes)
            return dot(x[..., ::2], halves[0]) + dot(_odd(x), halves[1])
        values = row_values(weight, rows, codes) if weight.format.is_low else codes
        return dot(x, values.astype(compute_type))

    def step(index: jax.Array, y: jax.Array) -> jax.Array:
        first = jnp.minimum(index * tile, outputs - tile)
        part = lax.cond(
            index < tiles,  # always; see the docstring of the module
            compute,
            lambda *arguments: native.varying_as(
                jnp.zeros((*x.shape[:-1], tile), jnp.float32), *jax.tree.leaves(arguments)
            ),
            *(first, expert, x, weight),
        )
        return lax.dynamic_update_slice_in_dim(y, part, first, axis=y.ndim - 1)

    # Every output is written, so any start will do. Zeros would be made for all layers ahead of time and held.
    start = jnp.broadcast_to(x[..., :1].astype(jnp.float32), (*x.shape[:-1], outputs))
    start = native.varying_as(start, *jax.tree.leaves(weight))
    return lax.fori_loop(0, tiles, step, start).reshape(rows, outputs)


def _odd(x: jax.Array) -> jax.Array:
    """The odd inputs of x, as many as there are even ones: a zero where the last has no partner."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] % 2)])[..., 1::2]


def _sliced(codes: jax.Array, expert: jax.Array | None, first: jax.Array, tile: int) -> jax.Array:
    """The codes of `tile` rows from row `first` on; of one expert's, where codes are a stack."""
    bits = as_bits(codes)
    if expert is None:
        return from_bits(lax.dynamic_slice_in_dim(bits, first, tile), codes.dtype)
    start = (expert, first, jnp.zeros((), first.dtype))
    return from_bits(lax.dynamic_slice(bits, start, (1, tile, codes.shape[2]))[0], codes.dtype)
