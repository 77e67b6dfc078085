"""Products by the C++ kernels under JAX's transformations, and what their programs keep in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from native_weights import KERNELS, REASON, assert_product, exact, rows_of, weight_of

from bombus.kernels import Weight, product
from bombus.kernels.product import products
from bombus.policies.formats import find_format

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
CASES = ["f8_e4m3fn(tile=16x32)", "int4(group=32, zero_points)", "nvfp4", "bf16"]
SHAPE = (37, 70)
each_case = pytest.mark.parametrize("case", CASES)
in_f32 = partial(product, compute_type=F32)


def made(case: str, seed: int = 0) -> tuple[Weight, np.ndarray]:
    """A weight of SHAPE, and its float64 values."""
    weight = weight_of(case, SHAPE, np.random.default_rng(seed))
    return weight, exact(weight)


def stacked(case: str, count: int) -> tuple[Weight, np.ndarray]:
    """Weights on an axis in front, and their values."""
    each = [made(case, seed) for seed in range(count)]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *(weight for weight, _ in each)), np.stack(
        [v for _, v in each]
    )


def near(found: Any, expected: np.ndarray, case: Any = "") -> None:
    """To float32's rounding of the largest."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=str(case))


@each_case
def test_vmap(case: str) -> None:
    """Over x, over the weights, over both, and one in the other."""
    weight, values = made(case)
    stack, each = stacked(case, 3)
    x = rows_of(3 * 2 * 4, SHAPE[1], F32, np.random.default_rng(1)).reshape(3, 2, 4, -1)
    x64 = x.astype(np.float64)

    @jax.jit
    def run(x: jax.Array, weight: Weight, stack: Weight) -> tuple[jax.Array, ...]:
        over_x = jax.vmap(in_f32, (0, None))
        return (
            over_x(x[0], weight),
            jax.vmap(in_f32, (None, 0))(x[0, 0], stack),
            jax.vmap(in_f32)(x[:, 0], stack),
            jax.vmap(over_x, (0, None))(x, weight),
            jax.vmap(over_x)(x, stack),
            jax.vmap(jax.vmap(in_f32, (None, 0)), (0, None))(x[0], stack),
            jax.vmap(in_f32, (2, None))(jnp.moveaxis(x[0], 0, 2), weight),
            jax.vmap(in_f32, (0, None))(x[0, 0], weight),
        )

    assert "bombus_product" in run.lower(x, weight, stack).as_text()
    expected = (
        x64[0] @ values.T,
        np.einsum("ri,boi->bro", x64[0, 0], each),
        np.einsum("bri,boi->bro", x64[:, 0], each),
        x64 @ values.T,
        np.einsum("bcri,boi->bcro", x64, each),
        np.einsum("cri,boi->cbro", x64[0], each),
        x64[0] @ values.T,
        x64[0, 0] @ values.T,
    )
    for index, (found, right) in enumerate(zip(run(x, weight, stack), expected, strict=True)):
        assert found.shape == right.shape
        near(found, right, index)


@each_case
def test_derivatives_in_x(case: str) -> None:
    """grad, jvp, vjp, hessian, vmap of grad and grad of vmap; float64's."""
    weight, values = made(case)
    random = np.random.default_rng(2)
    x, direction = rows_of(5, SHAPE[1], F32, random), rows_of(5, SHAPE[1], F32, random)
    back = rows_of(5, SHAPE[0], F32, random)

    def energy(x: jax.Array, weight: Weight) -> jax.Array:
        return (in_f32(x, weight) ** 2).sum()

    @jax.jit
    def run(x: jax.Array, direction: jax.Array, back: jax.Array, weight: Weight) -> tuple[jax.Array, ...]:
        forward, tangent = jax.jvp(lambda x: in_f32(x, weight), (x,), (direction,))
        result, pull = jax.vjp(lambda x: in_f32(x, weight), x)
        return (
            jax.grad(energy)(x, weight),
            *(forward, tangent, result, *pull(back)),
            jax.hessian(energy)(x[0], weight),
            jax.vmap(jax.grad(energy), (0, None))(x, weight),
            jax.grad(lambda x: (jax.vmap(in_f32, (0, None))(x, weight) ** 2).sum())(x),
            jax.jvp(jax.grad(energy), (x, weight), (direction, jax.tree.map(_zero, weight)))[1],
        )

    x64, y = x.astype(np.float64), x.astype(np.float64) @ values.T
    slope = 2 * y @ values
    expected = (slope, y, direction @ values.T, y, back @ values, 2 * values.T @ values, slope, slope)
    expected += (2 * (direction @ values.T) @ values,)
    assert x64.dtype == np.float64
    for index, (found, right) in enumerate(zip(run(x, direction, back, weight), expected, strict=True)):
        near(found, right, index)


def _zero(array: jax.Array) -> Any:
    """No change: of what is no number, in the type that JAX has for that."""
    return (
        jnp.zeros_like(array) if jnp.issubdtype(array.dtype, jnp.inexact) else np.zeros(array.shape, jax.dtypes.float0)
    )


@pytest.mark.parametrize("compute", [F32, BF16], ids=str)
def test_gradient_in_a_bf16_weight(compute: Any) -> None:
    """What training needs; in the weight's own type."""
    random = np.random.default_rng(3)
    x = rows_of(5, SHAPE[1], compute, random)
    values = random.standard_normal(SHAPE).astype(BF16)

    def energy(values: jax.Array, x: jax.Array) -> jax.Array:
        return (product(x, Weight.plain(values), compute_type=compute) ** 2).sum()

    run = jax.jit(jax.value_and_grad(energy))
    assert "bombus_product" in run.lower(values, x).as_text()
    found, gradient = run(values, x)
    x64, w64 = x.astype(np.float64), values.astype(np.float64)
    y = x64 @ w64.T
    np.testing.assert_allclose(found, (y**2).sum(), rtol=1e-5)
    assert gradient.dtype == BF16
    expected = 2 * y.T @ x64
    # XLA's own rounding: of the cotangent where it computes in bf16, and of the gradient.
    np.testing.assert_allclose(gradient.astype(np.float64), expected, rtol=0, atol=8e-3 * np.abs(expected).max())


@each_case
def test_loops(case: str) -> None:
    """In a scan over stacked weights, and a while loop; with x given away."""
    stack, each = stacked(case, 3)
    square = weight_of(case, (70, 70), np.random.default_rng(4))
    x = rows_of(2, SHAPE[1], F32, np.random.default_rng(5))

    @jax.jit
    def scanned(x: jax.Array, stack: Weight) -> jax.Array:
        return lax.scan(lambda x, weight: (x, in_f32(x, weight)), x, stack)[1]

    near(scanned(x, stack), np.einsum("ri,boi->bro", x.astype(np.float64), each))

    @partial(jax.jit, donate_argnums=0)
    def repeated(x: jax.Array, weight: Weight, count: int) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            y = in_f32(carry[1], weight)
            return carry[0] + 1, y / jnp.abs(y).max()

        return lax.while_loop(lambda carry: carry[0] < count, step, (jnp.zeros((), jnp.int32), x))[1]

    given = jnp.array(x)
    found = repeated(given, square, np.int32(4))
    assert given.is_deleted()
    expected = x.astype(np.float64)
    for _ in range(4):
        expected = expected @ exact(square).T
        expected /= np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_products_of_several_formats() -> None:
    """Each is that of its weight alone; a float32 weight beside them goes to XLA alone."""
    random = np.random.default_rng(6)
    weights = tuple(
        weight_of(case, (outputs, 70), random) for case, outputs in zip(CASES, (5, 64, 1, 130), strict=True)
    )
    x = rows_of(4, 70, F32, random)
    both = jax.jit(partial(products, compute_type=F32))
    for found, weight in zip(both(x, weights), weights, strict=True):
        np.testing.assert_array_equal(found, in_f32(x, weight))
        assert_product(found, x, exact(weight), weight.format)
    text = both.lower(x, weights).as_text()
    assert text.count("@bombus_product") == 1
    wide = (*weights, weight_of("f32", (7, 70), random))
    assert both.lower(x, wide).as_text().count("@bombus_product") == 1
    for found, weight in zip(both(x, wide), wide, strict=True):
        assert_product(found, x, exact(weight), weight.format)


SHARDED = """
from dataclasses import replace
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from native_weights import exact, rows_of, weight_of
from bombus.kernels import product
jax.config.update("jax_numpy_dtype_promotion", "strict")
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
assert len(jax.devices()) == 4
random = np.random.default_rng(0)
for case in ("f8_e4m3fn(tile=16x32)", "int8", "mxfp4"):
    weight = weight_of(case, (64, 128), random)
    x = rows_of(8, 128, np.float32, random)
    expected = x.astype(np.float64) @ exact(weight).T
    def local(x, weight):
        inputs = weight.codes.shape[1] * (2 if weight.format.packed else 1)
        return product(x, replace(weight, shape=(weight.codes.shape[0], inputs)), compute_type=np.dtype("float32"))
    def summed(x, weight):
        return jax.lax.psum(local(x, weight), "d")
    rows = jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    outputs = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(None, "d"))
    runs = [rows, outputs]
    if case == "mxfp4":  # a scale for every 32 inputs
        runs.append(jax.shard_map(summed, mesh=mesh, in_specs=(P(None, "d"), P(None, "d")), out_specs=P()))
    for run in runs:
        text = jax.jit(run).lower(x, weight).as_text()
        assert "bombus_product" in text
        found = np.asarray(jax.jit(run)(x, weight))
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), case
        slope = jax.jit(jax.grad(lambda x: (run(x, weight) ** 2).sum()))(x)
        right = 2 * expected @ exact(weight)
        assert np.abs(np.asarray(slope) - right).max() <= 1e-5 * np.abs(right).max(), case
    # Without shard_map XLA decides what moves.
    placed = jax.device_put(x, NamedSharding(mesh, P("d")))
    found = jax.jit(lambda x: product(x, weight, compute_type=np.dtype("float32")))(placed)
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max(), case
print("right")
"""


def test_shard_map() -> None:
    """On four devices: rows, outputs and inputs divided; differentiated; and sharded arrays without it."""
    here = os.path.dirname(__file__)
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{here}/../support"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHARDED], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


# What a compiled program keeps


def abstract(case: str, shape: tuple[int, int]) -> Weight:
    """The shapes and types of a weight."""
    format = find_format(case)
    parts = {name: jax.ShapeDtypeStruct(*part) for name, part in format.parts(shape).items()}
    return Weight(
        codes=jax.ShapeDtypeStruct(format.codes_shape(shape), format.dtype), **parts, format=format, shape=shape
    )


@pytest.mark.parametrize("compute", [F32, BF16], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_product_has_no_temporaries(rows: int, compute: Any) -> None:
    """Of one weight, and of all in a loop: a few rows of x and y, and nothing of the weights' sizes."""
    size = 512
    cases = [case for case in (*CASES, "f8_e5m2", "int8", "bfp8(axis=out)", "mxfp4") for _ in range(2)]
    weights = [abstract(case, (size, size)) for case in cases]
    x = jax.ShapeDtypeStruct((rows, size), compute)
    row_bytes = rows * size * 4
    for weight in weights[::2]:
        compiled = jax.jit(partial(product, compute_type=compute)).lower(x, weight).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 3 * row_bytes

    def loop(x: jax.Array, weights: list[Weight], count: int) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            y = carry[1]
            for weight in weights:
                y = jnp.tanh(product(y, weight, compute_type=compute)).astype(compute)
            return carry[0] + 1, y

        return lax.while_loop(lambda carry: carry[0] < count, step, (jnp.zeros((), jnp.int32), x))[1]

    compiled = jax.jit(loop).lower(x, weights, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 6 * row_bytes + 4096
    assert 6 * 40 * size * 4 + 4096 < 2 * size * size  # less than a single weight in 16 bits
