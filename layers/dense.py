"""Dense layers, plain and with block-FP8 kernels.

Shapes: I inputs, O outputs. Kernels are stored (O, I), as in the checkpoint.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import product, scale_grid
from bombus.layers.layer import Layer
from bombus.policies.formats import DType


def fp8_aware_dense(
    x: jax.Array,
    kernel: jax.Array,
    scale_inv: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    block_shape: tuple[int, int] = (128, 128),
    compute_type: DType | None = None,
    output_type: DType | None = None,
) -> jax.Array:
    """x (..., I) times kernel (O, I), plus bias (O,), as (..., O) in `output_type` (default: the type of x).

    With `scale_inv` (ceil(O/P), ceil(I/Q)) for block_shape (P, Q), the kernel holds float8_e4m3fn codes, each
    tile of which is multiplied by its scale while the product runs; tiles at the edges may be partial. Without
    it this is a plain dense. `compute_type` (default: the type of x) is what the kernel is dequantized or cast
    to; products are accumulated in float32.

    Raises TypeError for float8 codes without scales or scales without codes, ValueError for a wrong grid.
    """
    dtype = jnp.dtype(x.dtype if compute_type is None else compute_type)
    if (kernel.dtype == jnp.float8_e4m3fn) != (scale_inv is not None):
        raise TypeError(
            f"a {kernel.dtype} kernel {'needs' if scale_inv is None else 'takes no'} scale_inv: float8_e4m3fn codes "
            "and their scales belong together"
        )
    if scale_inv is not None and scale_inv.shape != scale_grid(kernel.shape, block_shape):
        raise ValueError(
            f"scale_inv of a kernel {kernel.shape} in tiles of {block_shape} must be "
            f"{scale_grid(kernel.shape, block_shape)}, not {scale_inv.shape}"
        )
    y = product(x, kernel, scale_inv, block_shape=block_shape, compute_type=dtype)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype if output_type is None else output_type)


class Dense(Layer):
    """x (..., I) -> (..., O) with a `kernel` (O, I), an optional `bias` (O,), and `scale_inv` when it is FP8.

    `output_type` is what is returned where the policy gives no output type (default: the type of x).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        output_type: DType | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        # 0.02 is what transformers initialises with (`initializer_range`).
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (outputs, inputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.scale_inv: nnx.Param | None = nnx.data(None)
        self.block_shape = (0, 0)
        self.output_type = output_type

    def store_in_tiles(self, block_shape: tuple[int, int]) -> None:
        """Make room for an FP8 kernel: one scale per tile of `block_shape`."""
        self.block_shape = block_shape
        self.scale_inv = nnx.Param(jnp.ones(scale_grid(self.kernel.get_value().shape, block_shape), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias.get_value()
        return fp8_aware_dense(
            x,
            self.kernel.get_value(),
            None if self.scale_inv is None else self.scale_inv.get_value(),
            None if bias is None else bias.astype(self.compute_type("bias", bias.dtype)),
            block_shape=self.block_shape,
            compute_type=self.compute_type("kernel", x.dtype),
            output_type=self.output_type_of("kernel", x.dtype if self.output_type is None else self.output_type),
        )
