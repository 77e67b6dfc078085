"""The product of x and a stored kernel: values, gradients, batching, and what the compiled program keeps alive."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from numpy_decoder import dequantize

from bombus.kernels import Weight, lookup, product
from bombus.policies.formats import find_format

SHAPES = [(1, 1), (2, 3), (5, 7), (128, 128), (129, 130), (300, 200), (700, 96)]
F32, BF16, F16 = (jnp.dtype(name) for name in ("float32", "bfloat16", "float16"))


def fp8(codes: jax.Array, scale: jax.Array, block: tuple[int, int]) -> Weight:
    """The weight that these codes are, with one scale per tile of this size."""
    format = find_format(f"f8_e4m3fn(tile={block[0]}x{block[1]})")
    return Weight(codes=codes, scale_inv=scale, format=format, shape=codes.shape)


def kernel_of(shape: tuple[int, int], block: tuple[int, int]) -> tuple[Weight, np.ndarray]:
    """(stored weight, float64 values) of a random FP8 kernel whose scales differ from tile to tile."""
    random = np.random.default_rng(sum(shape))
    codes = random.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scale = np.exp(random.uniform(-2, 2, grid)).astype(np.float32)
    return fp8(jnp.asarray(codes), jnp.asarray(scale), block), dequantize(codes, scale, block)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize("block", [(128, 128), (64, 96)])
def test_fp8_product_equals_float64(shape: tuple[int, int], rows: int, block: tuple[int, int]) -> None:
    """Every combination of partial tiles and numbers of rows, to float32's rounding."""
    weight, weights = kernel_of(shape, block)
    x = np.random.default_rng(rows).standard_normal((rows, shape[1])).astype(np.float32)
    found = np.asarray(product(x, weight, compute_type=F32))
    bound = 4e-7 * np.sqrt(shape[1]) * (np.abs(x.astype(np.float64)) @ np.abs(weights).T)
    assert (np.abs(found - x.astype(np.float64) @ weights.T) <= bound + 1e-30).all()


@pytest.mark.parametrize(("rows", "tolerance"), [(1, 1e-6), (16, 1e-6), (40, 4e-3)])
def test_bf16_computation(rows: int, tolerance: float) -> None:
    """x is rounded to bf16; few rows keep exact weights, many rows round them to bf16, sums are float32."""
    weight, weights = kernel_of((300, 200), (128, 128))
    x = np.random.default_rng(3).standard_normal((rows, 200)).astype(ml_dtypes.bfloat16)
    found = np.asarray(product(jnp.asarray(x), weight, compute_type=BF16))
    expected = x.astype(np.float64) @ weights.T
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("compute", [F32, BF16, F16])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_plain_kernels(stored: type, compute: np.dtype, rows: int) -> None:
    """Kernels without scales, stored in one type and computed in another."""
    random = np.random.default_rng(7)
    kernel = random.standard_normal((130, 70)).astype(stored)
    x = random.standard_normal((rows, 70)).astype(np.float32)
    expected = x.astype(np.float64) @ kernel.astype(np.float64).T
    found = np.asarray(product(x, Weight.plain(jnp.asarray(kernel)), compute_type=compute))
    tolerance = 2e-6 if compute == F32 else 2e-2
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_gradient_and_vmap() -> None:
    """The product differentiates in x and batches."""
    weight, weights = kernel_of((300, 200), (128, 128))
    x = np.random.default_rng(9).standard_normal((4, 3, 200)).astype(np.float32)
    total = lambda x: (product(x, weight, compute_type=F32) ** 2).sum()  # noqa: E731
    expected = 2 * (x.astype(np.float64) @ weights.T) @ weights
    np.testing.assert_allclose(np.asarray(jax.grad(total)(x)), expected, atol=2e-5 * np.abs(expected).max())
    batched = jax.vmap(lambda row: product(row, weight, compute_type=F32))(x)
    np.testing.assert_allclose(batched, x.astype(np.float64) @ weights.T, atol=1e-4)


def abstract_fp8(outputs: int, inputs: int) -> Weight:
    """The shapes of an FP8 weight in tiles of 128."""
    codes = jax.ShapeDtypeStruct((outputs, inputs), jnp.float8_e4m3fn)
    return fp8(codes, jax.ShapeDtypeStruct((-(-outputs // 128), -(-inputs // 128)), F32), (128, 128))


def abstract_plain(outputs: int, inputs: int, dtype: np.dtype) -> Weight:
    """The shape of a weight that is stored as its values."""
    return Weight.plain(jax.ShapeDtypeStruct((outputs, inputs), dtype))


def temporaries(step, x, weights) -> int:
    """Bytes of temporaries of a program that applies all the weights in turn, in a loop of unknown length."""

    def loop(x, weights, count):
        return lax.while_loop(
            lambda carry: carry[0] < count, lambda carry: (carry[0] + 1, step(carry[1], weights)), (0, x)
        )[1]

    compiled = jax.jit(loop).lower(x, weights, 3).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("rows", [1, 4, 32])
@pytest.mark.parametrize("compute", [F32, BF16, F16])
@pytest.mark.parametrize("stored", ["fp8", "other"])
def test_a_loop_never_holds_converted_weights(rows: int, compute: np.dtype, stored: str) -> None:
    """24 kernels in a loop: temporaries stay about one converted kernel, whatever XLA would like to hoist."""
    size = 512
    # XLA:CPU has no float16 product and converts a float16 kernel too.
    other = {F32: BF16, BF16: F32, F16: F16}[compute]
    weights = [abstract_fp8(size, size) if stored == "fp8" else abstract_plain(size, size, other) for _ in range(24)]

    def step(x, weights):
        for weight in weights:
            x = jnp.tanh(product(x, weight, compute_type=compute)).astype(x.dtype)
        return x

    x = jax.ShapeDtypeStruct((rows, size), compute)
    # Few rows convert tiles of 128 of the 512 outputs, in float32; many rows one kernel, in the compute type.
    kernels = 0.5 * 4 if rows <= 16 else 1.25 * (compute.itemsize if compute != F16 else 4)
    assert temporaries(step, x, weights) < kernels * size * size


@pytest.mark.parametrize("table", [abstract_plain(5000, 64, BF16), abstract_fp8(5000, 64)], ids=["bf16", "fp8"])
def test_a_loop_never_holds_a_converted_table(table: Weight) -> None:
    """An embedding in bf16 or FP8 is looked up without a float32 copy of it."""

    def step(x, table):
        rows = lookup(table, jnp.arange(4, dtype=jnp.int32) + x[0, 0].astype(jnp.int32))
        return x + rows.astype(x.dtype)

    assert temporaries(step, jax.ShapeDtypeStruct((4, 64), BF16), table) < 5000 * 64


def test_lookup_reads_rows_and_clips() -> None:
    """Rows come back bit for bit; a token past the end gets the last row."""
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(ml_dtypes.bfloat16)
    found = np.asarray(lookup(Weight.plain(jnp.asarray(table)), jnp.array([[0, 9], [3, 12]])))
    np.testing.assert_array_equal(found, table[[[0, 9], [3, 9]]])
