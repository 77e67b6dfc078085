"""Products of rows with kernels of a stack of experts, of which each row uses one. What no row uses is not read.

Rows are put in order of their experts and cut into blocks of M rows of one expert each; where an expert has too few
to fill its last block, places stay empty. One loop runs over the blocks, so that one expert's kernel is converted at a
time. There are as many blocks as the worst routing needs, because shapes are static; those that this one does not
need are skipped on CPU. `lax.ragged_dot` is no way there: XLA:CPU expands it to the product of every row with every
expert (64 times the work for 64 experts), and it cannot be vmapped.

Shapes: T tokens, K experts that each has chosen, E experts, N blocks, M rows of a block, P = N x M places, I inputs,
O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels import native
from bombus.kernels.native_grouped import multiply_groups
from bombus.kernels.product import FEW_ROWS, by_tiles, dot, whole
from bombus.kernels.weight import Weight, dequantize

_MOST_ROWS = 128  # of a block: beyond that a product does not gain


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Groups:
    """Where the rows of tokens stand when they are in order of their experts.

    expert_N: whose rows a block holds. used: how many blocks hold any. token_P: the token at a place, T where it is
    empty. place_TK: the place of a token's row for each of its experts. rows: M.
    """

    expert_N: jax.Array
    used: jax.Array
    token_P: jax.Array
    place_TK: jax.Array
    rows: int = field(metadata={"static": True})

    @property
    def expert_P(self) -> jax.Array:
        """The expert of every place."""
        return jnp.repeat(self.expert_N, self.rows)

    def gather(self, x_TD: jax.Array) -> jax.Array:
        """The rows of tokens in their places, (P, D): one for each expert of a token, zeros where it is empty."""
        return jnp.take(x_TD, self.token_P, axis=0, mode="fill", fill_value=0)

    def combine(self, y_PD: jax.Array, weights_TK: jax.Array) -> jax.Array:
        """The weighted sum of what a token's experts have returned, (T, D) in float32."""
        y_TKD = jnp.take(y_PD, self.place_TK, axis=0, mode="clip").astype(jnp.float32)
        return (y_TKD * weights_TK[..., None].astype(jnp.float32)).sum(axis=1)


def block_rows(rows: int, experts: int) -> int:
    """M for so many rows: a power of two, about as many as an expert gets on average."""
    return min(1 << (-(-rows // experts) - 1).bit_length(), _MOST_ROWS)


def group_rows(experts_TK: jax.Array, num_experts: int) -> Groups:
    """The Groups of tokens that have chosen these experts, integers (T, K) below num_experts."""
    tokens, chosen = experts_TK.shape
    total = tokens * chosen
    rows = block_rows(total, num_experts)
    # Each expert in use leaves at most rows - 1 places empty.
    blocks = (total + min(num_experts, total) * (rows - 1)) // rows
    experts_R = experts_TK.reshape(-1).astype(jnp.int32)
    sorted_R, order_R = lax.sort((experts_R, jnp.arange(total, dtype=jnp.int32)), num_keys=1)
    count_E = jnp.zeros(num_experts, jnp.int32).at[experts_R].add(1)
    last_E = jnp.cumsum(-(-count_E // rows))
    # What is skipped to fill the blocks of the experts before.
    empty_E = (last_E - -(-count_E // rows)) * rows - (jnp.cumsum(count_E) - count_E)
    place_R = jnp.zeros_like(order_R).at[order_R].set(jnp.arange(total, dtype=jnp.int32) + empty_E[sorted_R])
    token_R = jnp.arange(total, dtype=jnp.int32) // chosen
    block_N = jnp.arange(blocks, dtype=jnp.int32)
    # Blocks without rows go to an expert that is in use.
    expert_N = jnp.searchsorted(last_E, jnp.minimum(block_N, last_E[-1] - 1), side="right", method="compare_all")
    return Groups(
        expert_N=expert_N.astype(jnp.int32),
        used=last_E[-1],
        token_P=jnp.full(blocks * rows, tokens, jnp.int32).at[place_R].set(token_R, unique_indices=True),
        place_TK=place_R.reshape(experts_TK.shape),
        rows=rows,
    )


# jit: as for product.
@partial(jax.jit, static_argnames="compute_type")
def grouped_product(x_PI: jax.Array, groups: Groups, stack: Weight, *, compute_type: jnp.dtype) -> jax.Array:
    """The rows in places (P, I), each times the kernel (O, I) of its expert of the stack: (P, O) in float32.

    Computed in `compute_type`; kernels that are stored otherwise are converted one at a time while the product runs.
    """
    blocks = groups.expert_N.shape[0]
    x_NMI = x_PI.astype(compute_type).reshape(blocks, groups.rows, -1)
    arguments = (x_NMI, groups.expert_N, groups.used.astype(jnp.int32), stack)
    if native.runs(stack, compute_type):
        y_NMO = lax.platform_dependent(*arguments, cpu=_native, default=_in_turn)
    else:
        y_NMO = _in_turn(*arguments)
    return y_NMO.reshape(x_PI.shape[0], stack.shape[0])


@jax.custom_jvp
def _native(x_NMI: jax.Array, expert_N: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
    return multiply_groups(x_NMI, expert_N, used, stack)


@_native.defjvp
def _native_jvp(primals: Any, tangents: Any) -> Any:
    x_NMI, expert_N, used, stack = primals

    def multiply_all(x_NMI: jax.Array, stack: Weight) -> jax.Array:
        # As in product.py: converted again on the way back, and without a barrier.
        @partial(jax.checkpoint, prevent_cse=False)
        def multiply(x_MI: jax.Array, expert: jax.Array, stack: Weight) -> jax.Array:
            return dot(x_MI, dequantize(stack.expert(expert), x_MI.dtype))

        def step(_: None, block: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
            index, x_MI, expert = block
            return None, jnp.where(index < used, multiply(x_MI, expert, stack), 0)

        index_N = jnp.arange(x_NMI.shape[0], dtype=jnp.int32)
        return lax.scan(step, None, (index_N, x_NMI, expert_N))[1]

    if stack.format.is_low:
        return _native(*primals), multiply_all(tangents[0], stack)
    return _native(*primals), jax.jvp(multiply_all, (x_NMI, stack), (tangents[0], tangents[3]))[1]


def _in_turn(x_NMI: jax.Array, expert_N: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
    """XLA's way: one block after the other."""

    # Its gradient converts the kernel again, and not that of every block ahead of time.
    @partial(jax.checkpoint, prevent_cse=False)
    def multiply(x_MI: jax.Array, expert: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
        return lax.platform_dependent(x_MI, expert, used, stack, cpu=_on_cpu, default=_elsewhere)

    def step(y_NMO: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        index, x_MI, expert = block
        y_MO = multiply(x_MI, expert, index < used, stack)
        return lax.dynamic_update_index_in_dim(y_NMO, y_MO, index, 0), None

    # Every block is written, so any start will do; zeros would be held for all layers (see by_tiles).
    start = jnp.broadcast_to(x_NMI[..., :1].astype(jnp.float32), (*x_NMI.shape[:2], stack.shape[0]))
    index_N = jnp.arange(x_NMI.shape[0], dtype=jnp.int32)
    return lax.scan(step, start, (index_N, x_NMI, expert_N))[0]


def _elsewhere(x_MI: jax.Array, expert: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
    # Without a conditional, for which accelerators wait.
    return whole(x_MI, stack.expert(expert))


def _on_cpu(x_MI: jax.Array, expert: jax.Array, used: jax.Array, stack: Weight) -> jax.Array:
    def multiply(x_MI: jax.Array, expert: jax.Array, stack: Weight) -> jax.Array:
        return by_tiles(x_MI, stack, expert) if x_MI.shape[0] <= FEW_ROWS else whole(x_MI, stack.expert(expert))

    # XLA does not know that some blocks are always used: nothing of the stack is converted outside the conditional.
    empty = (x_MI.shape[0], stack.shape[0])
    return lax.cond(used, multiply, lambda *_: jnp.zeros(empty, jnp.float32), x_MI, expert, stack)
