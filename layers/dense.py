"""Dense layers, with kernels of any storage format.

Shapes: I inputs, O outputs. Kernels are stored (O, I), as in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bombus.kernels import Weight, product, products
from bombus.layers.layer import WeightLayer, declare
from bombus.policies.formats import DType, fp8_in_tiles


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
    if (kernel.dtype == jnp.float8_e4m3fn) != (scale_inv is not None):
        raise TypeError(
            f"a {kernel.dtype} kernel {'needs' if scale_inv is None else 'takes no'} scale_inv: float8_e4m3fn codes "
            "and their scales belong together"
        )
    if scale_inv is None:
        weight = Weight.plain(kernel)
    else:
        format = fp8_in_tiles(block_shape).with_scale(scale_inv.dtype)
        grid = format.grid(kernel.shape)
        if scale_inv.shape != grid:
            raise ValueError(
                f"scale_inv of a kernel {kernel.shape} in tiles of {block_shape} must be {grid}, not {scale_inv.shape}"
            )
        weight = Weight(
            codes=kernel, scale_inv=scale_inv, format=format.canonical, shape=(kernel.shape[0], kernel.shape[1])
        )
    return dense(x, weight, bias, compute_type=compute_type, output_type=output_type)


def dense(
    x: jax.Array,
    weight: Weight,
    bias: jax.Array | None = None,
    *,
    compute_type: DType | None = None,
    output_type: DType | None = None,
) -> jax.Array:
    """x (..., I) times a stored weight (O, I) of any format, plus bias (O,). Types as in fp8_aware_dense."""
    y = product(x, weight, compute_type=jnp.dtype(x.dtype if compute_type is None else compute_type))
    return _finished(y, bias, x.dtype if output_type is None else output_type)


def _finished(y: jax.Array, bias: jax.Array | None, dtype: DType) -> jax.Array:
    # XLA fuses this with what comes next; inside the kernels it would not be faster (benchmarks/README.md).
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(dtype)


def dense_together(x: jax.Array, layers: Sequence[Dense]) -> list[jax.Array]:
    """layer(x) for each of the layers; in one call where they compute in the same type."""
    types = [layer.compute_type("kernel", x.dtype) for layer in layers]
    if len(set(types)) > 1:
        return [layer(x) for layer in layers]
    made = products(x, tuple(layer.weight for layer in layers), compute_type=jnp.dtype(types[0]))
    return [layer.finished(y, x.dtype) for layer, y in zip(layers, made, strict=True)]


class Dense(WeightLayer):
    """x (..., I) -> (..., O) with a `kernel` (O, I), an optional `bias` (O,), and the parts of the kernel's format.

    `output_type` is what is returned where the policy gives no output type (default: the type of x).
    """

    weight_name = "kernel"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        output_type: DType | None = None,
    ) -> None:
        super().__init__(outputs, inputs)
        self.bias = declare((outputs,), jnp.dtype(jnp.float32)) if bias else None
        self.output_type = output_type

    def __call__(self, x: jax.Array) -> jax.Array:
        y = product(x, self.weight, compute_type=jnp.dtype(self.compute_type("kernel", x.dtype)))
        return self.finished(y, x.dtype)

    def finished(self, y: jax.Array, dtype: DType) -> jax.Array:
        """The float32 product of an x of this type, with the bias and in the type that is returned."""
        bias = None if self.bias is None else self.bias.get_value()
        if bias is not None:
            bias = bias.astype(self.compute_type("bias", bias.dtype))
        return _finished(
            y, bias, self.output_type_of("kernel", dtype if self.output_type is None else self.output_type)
        )
