"""Products with low-precision kernels and rows of low-precision tables: values, gradients, batching, memory.

Weights are made by the NumPy model of tests/support, so that nothing here rests on the quantization of Bombus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_formats as model
import pytest
from jax import lax

from bombus.kernels import Weight, lookup, product
from bombus.policies.formats import find_format

F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
SHAPES = [(1, 1), (3, 5), (130, 201)]  # the last has partial tiles of every format, and an odd number of inputs
LARGE = SHAPES[-1]
CASES = [
    *("f8_e4m3fn", "f8_e4m3fn(tile=64x96)", "f8_e4m3fn(tile=channel, scale=bf16)"),
    *("f8_e4m3fn(tile=tensor, scale=f16)", "f8_e4m3fn(scale=e8m0)", "f8_e5m2"),
    *("int8", "int8(group=32, scale=bf16)", "int4", "int4(group=32, scale=f32)", "int4(group=64, zero_points)"),
    *("bfp8", "bfp8(axis=out)", "bfp4", "bfp4(axis=out)"),
    *("mxfp8", "mxfp8(element=f8_e5m2)", "mxfp4", "nvfp4"),
]
# One of every name: for small shapes, and where the path of the product is one that another test covers.
EACH = ["f8_e4m3fn(tile=64x96)", "f8_e5m2", "int8(group=32, scale=bf16)", "int4(group=64, zero_points)", "bfp8"]
EACH += ["bfp4(axis=out)", "mxfp8", "mxfp4", "nvfp4"]
Weights = dict[str, Weight]
Values = dict[str, np.ndarray]


@functools.cache
def stored(shape: tuple[int, int]) -> tuple[Weights, Values]:
    """case -> (weight, its float64 values): a random weight whose tiles differ in magnitude, by the NumPy model."""
    random = np.random.default_rng(sum(shape))
    values = random.standard_normal(shape) * np.exp2(random.integers(-4, 5, (shape[0], 1)))
    weights, exact = {}, {}
    for case in CASES if shape == LARGE else EACH:
        format = find_format(case)
        options = {"name": format.name, **dict(format.options)}
        parts = model.make_parts(values.astype(np.float32), **options)
        codes = model.make_codes(values.astype(np.float32), parts, **options)
        arrays = {name: jnp.asarray(part) for name, part in parts.items()}
        packed = jnp.asarray(model.pack(codes) if format.packed else codes)
        weights[case] = Weight(codes=packed, **arrays, format=format, shape=shape)
        exact[case] = model.decode(codes, parts, **options)
    return weights, exact


def x_of(*shape: int) -> np.ndarray:
    """Random float32 rows."""
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames="compute_type")
def _products(x: jax.Array, weights: Weights, compute_type: jnp.dtype) -> dict[str, jax.Array]:
    return {case: product(x, weight, compute_type=compute_type) for case, weight in weights.items()}


def cases_of(rows: int) -> list[str]:
    """Every format and option where the path of the product is one of its own."""
    return CASES if rows in (1, 17) else EACH


@functools.cache
def products(rows: int, shape: tuple[int, int], compute_type: jnp.dtype = F32) -> Values:
    """case -> product. One program for all: a compilation for each would take minutes."""
    weights = stored(shape)[0]
    cases = EACH if compute_type == BF16 or shape != LARGE else cases_of(rows)
    found = _products(x_of(rows, shape[1]), {case: weights[case] for case in cases}, compute_type)
    return {case: np.asarray(y) for case, y in found.items()}


def rounding(x: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """What float32 sums may be off by, and weights that are a product of scales."""
    return 4e-7 * np.sqrt(x.shape[-1]) * (np.abs(x.astype(np.float64)) @ np.abs(exact).T) + 1e-30


@pytest.mark.parametrize(("rows", "case"), [(rows, case) for rows in (1, 3, 16, 17, 40) for case in cases_of(rows)])
def test_product_equals_float64(rows: int, case: str) -> None:
    """One row, tiles of outputs for few rows, the whole kernel for many: to float32's rounding."""
    exact, x = stored(LARGE)[1][case], x_of(rows, LARGE[1])
    assert (np.abs(products(rows, LARGE)[case] - x.astype(np.float64) @ exact.T) <= rounding(x, exact)).all()


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize(("rows", "shape"), [(1, (1, 1)), (1, (3, 5)), (17, (3, 5))], ids=str)
def test_small_kernels(rows: int, shape: tuple[int, int], case: str) -> None:
    """Less than a tile, a byte with one code, a single weight."""
    exact, x = stored(shape)[1][case], x_of(rows, shape[1])
    assert (np.abs(products(rows, shape)[case] - x.astype(np.float64) @ exact.T) <= rounding(x, exact)).all()


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize(("rows", "tolerance"), [(1, 1e-6), (40, 4e-3)])
def test_bf16_computation(rows: int, tolerance: float, case: str) -> None:
    """x is rounded to bf16; few rows keep exact weights, many rows round them to bf16, sums are float32."""
    x = x_of(rows, LARGE[1]).astype(BF16).astype(np.float64)
    expected = x @ stored(LARGE)[1][case].T
    found = products(rows, LARGE, BF16)[case]
    assert found.dtype == np.float32
    # bf16 holds the values of 3 to 8 significant bits that are multiplied with powers of two.
    exact = find_format(case).name in ("bfp8", "bfp4", "mxfp8", "mxfp4")
    assert np.abs(found - expected).max() <= (1e-6 if exact else tolerance) * np.abs(expected).max()


@functools.cache
def gradients(rows: int) -> Values:
    """case -> gradient of the sum of squares of the product, in x."""
    weights = {case: stored(LARGE)[0][case] for case in EACH}

    def total(xs: dict[str, jax.Array], weights: Weights) -> jax.Array:
        return sum((product(xs[case], weight, compute_type=F32) ** 2).sum() for case, weight in weights.items())

    found = jax.jit(jax.grad(total))(dict.fromkeys(weights, jnp.asarray(x_of(rows, LARGE[1]))), weights)
    return {case: np.asarray(gradient) for case, gradient in found.items()}


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("rows", [2, 17])
def test_gradient(rows: int, case: str) -> None:
    """In x; the weights are constants."""
    exact, x = stored(LARGE)[1][case], x_of(rows, LARGE[1]).astype(np.float64)
    expected = 2 * (x @ exact.T) @ exact
    np.testing.assert_allclose(gradients(rows)[case], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@functools.cache
def batched() -> Values:
    """case -> the products of a batch, under vmap."""
    weights = {case: stored(LARGE)[0][case] for case in EACH}
    found = jax.jit(jax.vmap(lambda x, weights: _products(x, weights, F32), (0, None)))(x_of(2, 3, LARGE[1]), weights)
    return {case: np.asarray(y) for case, y in found.items()}


@pytest.mark.parametrize("case", EACH)
def test_vmap(case: str) -> None:
    """As if the batch were more rows."""
    exact, x = stored(LARGE)[1][case], x_of(2, 3, LARGE[1])
    assert (np.abs(batched()[case] - x.astype(np.float64) @ exact.T) <= rounding(x, exact)).all()


TOKENS = np.array([[0, 129, 64], [1, 130, 2**30]], np.int32)


@functools.cache
def rows_found() -> Values:
    """case -> the rows of TOKENS."""
    found = jax.jit(lambda tokens, tables: {case: lookup(table, tokens) for case, table in tables.items()})(
        TOKENS, stored(LARGE)[0]
    )
    return {case: np.asarray(rows) for case, rows in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_lookup(case: str) -> None:
    """Rows in float32, rounded once; tokens past the end get the last row, with its own scale."""
    expected, found = stored(LARGE)[1][case][np.minimum(TOKENS, 129)], rows_found()[case]
    assert found.dtype == np.float32
    if case == "nvfp4":  # two scales
        np.testing.assert_allclose(found, expected, rtol=2e-7)
    else:
        np.testing.assert_array_equal(found, expected.astype(np.float32))


# What a compiled program keeps


def abstract(case: str, shape: tuple[int, int]) -> Weight:
    """The shapes and types of a weight."""
    format = find_format(case)
    parts = {name: jax.ShapeDtypeStruct(*part) for name, part in format.parts(shape).items()}
    codes = jax.ShapeDtypeStruct(format.codes_shape(shape), format.dtype)
    return Weight(codes=codes, **parts, format=format, shape=shape)


def temporaries(step: Callable[[Any, Any], Any], x: Any, weights: list[Weight]) -> int:
    """Bytes of temporaries of a program that applies all the weights in turn, in a loop of unknown length."""

    def loop(x: Any, weights: list[Weight], count: int) -> Any:
        return lax.while_loop(
            lambda carry: carry[0] < count, lambda carry: (carry[0] + 1, step(carry[1], weights)), (0, x)
        )[1]

    # Buffers are the same when LLVM does not optimize the code.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(loop).lower(x, weights, 3).compile(options).memory_analysis().temp_size_in_bytes


KEPT = ["f8_e4m3fn", "f8_e4m3fn(tile=channel, scale=bf16)", "f8_e5m2", "int8", "int8(group=32, scale=bf16)", "int4"]
KEPT += ["int4(group=32, zero_points)", "bfp8", "bfp4(axis=out)", "mxfp8", "mxfp4", "nvfp4"]


@pytest.mark.parametrize(("rows", "compute"), [(1, BF16), (4, F32), (32, F32), (32, BF16)], ids=str)
def test_a_loop_never_holds_converted_weights(rows: int, compute: jnp.dtype) -> None:
    """24 kernels in a loop, two of every format: temporaries stay about one converted kernel."""
    size = 512
    kernels = [abstract(case, (size, size)) for case in KEPT for _ in range(2)]

    def step(x: jax.Array, kernels: list[Weight]) -> jax.Array:
        for kernel in kernels:
            x = jnp.tanh(product(x, kernel, compute_type=compute)).astype(x.dtype)
        return x

    found = temporaries(step, jax.ShapeDtypeStruct((rows, size), compute), kernels)
    # Few rows convert tiles of 128 of the 512 outputs, in float32; many rows one kernel, in the compute type.
    assert found < (0.35 * 4 if rows <= 16 else 1.25 * compute.itemsize) * size * size


def test_a_loop_never_holds_converted_tables() -> None:
    """Tables of every format in a loop that looks up four rows of each: temporaries are less than a row in ten."""
    size = (5000, 64)
    tables = [abstract(case, size) for case in KEPT for _ in range(2)]

    def step(x: jax.Array, tables: list[Weight]) -> jax.Array:
        for table in tables:
            x = x + lookup(table, jnp.arange(4, dtype=jnp.int32) + x[0, 0].astype(jnp.int32))
        return x

    found = temporaries(step, jax.ShapeDtypeStruct((4, 64), F32), tables)
    assert found < 4 * 5000 * 64 / 10
