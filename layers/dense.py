"""Dense layers, with kernels of any storage format.

Shapes: I inputs, O outputs. Kernels are stored (O, I), as in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bombus.kernels import Activation, Weight, combined, fused_products
from bombus.layers.layer import WeightLayer, declare
from bombus.layers.norm import Norm, RMSNorm, normed
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
    return fused_products(
        x,
        (weight,),
        compute_type=x.dtype if compute_type is None else compute_type,
        output_types=(x.dtype if output_type is None else output_type,),
        biases=(bias,),
    )[0]


def dense_together(
    x: jax.Array,
    layers: Sequence[Dense],
    *,
    norm: Norm | None = None,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """layer(norm(x)) for each of the layers; in one call where they compute in the same type.

    activation: of the first, times the second where there are two; there is one result then. residual: what every
    result is added to, in its type.
    """
    if norm is not None and not isinstance(norm, RMSNorm):
        x, norm = norm(x), None
    before = None if norm is None else norm.before(x.dtype)
    dtype = x.dtype if before is None else before.dtype
    types = [layer.compute_type("kernel", dtype) for layer in layers]
    if len(set(types)) > 1:
        x = normed(norm, x)
        return combined([layer(x) for layer in layers], activation, residual)
    return fused_products(
        x,
        [layer.weight for layer in layers],
        compute_type=types[0],
        output_types=[layer.returned_type(dtype) for layer in layers],
        biases=[layer.computed_bias for layer in layers],
        norm=before,
        activation=activation,
        residual=residual,
    )


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

    def __call__(self, x: jax.Array, *, residual: jax.Array | None = None) -> jax.Array:
        """The product, added to `residual` (..., O) in its type where there is one."""
        return dense_together(x, (self,), residual=residual)[0]

    @property
    def computed_bias(self) -> jax.Array | None:
        """The bias in the type that it is computed in."""
        if self.bias is None:
            return None
        bias = self.bias.get_value()
        return bias.astype(self.compute_type("bias", bias.dtype))

    def returned_type(self, dtype: DType) -> DType:
        """The type of what is returned for an x of this type."""
        return self.output_type_of("kernel", dtype if self.output_type is None else self.output_type)
