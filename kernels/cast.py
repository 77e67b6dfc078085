"""cast_weight: a weight rounded to a storage format inside a computation, for models of one's own and for training."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bombus.kernels.quantize import quantize
from bombus.kernels.weight import dequantize
from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import Format, find_format, type_name


def cast_weight(weight: jax.Array, format: Any) -> jax.Array:
    """`weight` with the values that it has in `format` ("bfp8", "int4(group=64)", ...), in its own shape and type.

    weight: (O, ...), floating. Tiles and groups run along all axes but the first, as one: for a kernel (in, out)
    give its transpose. The gradient passes as if nothing had happened (straight-through: Bengio et al. 2013).
    Raises PolicyError for an unknown format and for an array without two axes or of integers.
    """
    found = find_format(format)
    if weight.ndim < 2:
        raise PolicyError(
            Problem(
                subject="cast_weight",
                message=f"cannot store an array of shape {weight.shape} in {found}",
                expected="a weight of two axes or more",
            )
        )
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        raise PolicyError(
            Problem(
                subject="cast_weight",
                message=f"cannot store an array of {type_name(weight.dtype)} in {found}",
                expected="a weight of a floating type",
            )
        )
    return _rounded(weight, found)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(weight: jax.Array, format: Format) -> jax.Array:
    rows = weight.reshape(weight.shape[0], -1)
    return dequantize(quantize(rows, format), weight.dtype).reshape(weight.shape)


@_rounded.defjvp
def _straight_through(format: Format, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _rounded(primals[0], format), tangents[0]
