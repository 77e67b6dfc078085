"""Products of experts by the C++ kernels, called through XLA's foreign function interface on CPU.

Shapes: I inputs, O outputs, N blocks of M rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from bombus.kernels.native import described, varying_as
from bombus.kernels.weight import Weight, slice_bits


@custom_vmap
def multiply_groups(x_NMI: jax.Array, expert_N: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
    """Blocks of rows times the weight of one expert each, (N, M, O) in float32; from block `used` on zeros."""
    numbers, factors, arrays = described([stack])
    call = jax.ffi.ffi_call("bombus_grouped", jax.ShapeDtypeStruct((*x_NMI.shape[:2], stack.shape[0]), jnp.float32))
    experts = np.int64(stack.codes.shape[0])
    made = call(x_NMI, expert_N, used, *arrays, numbers=numbers, factors=factors, experts=experts)
    return varying_as(made, x_NMI, expert_N, used, *arrays)


@multiply_groups.def_vmap
def _multiply_groups_batch(size: int, batched: Any, *arguments: Any) -> tuple[jax.Array, bool]:
    arrays, tree = jax.tree.flatten(arguments)
    moving = jax.tree.leaves(tuple(batched))

    def one(index: jax.Array) -> jax.Array:
        taken = [slice_bits(a, index)[0] if moves else a for a, moves in zip(arrays, moving, strict=True)]
        return multiply_groups(*jax.tree.unflatten(tree, taken))

    return jax.lax.map(one, jnp.arange(size)), True
