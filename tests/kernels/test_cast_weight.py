"""cast_weight: the values of a format inside a computation, and a gradient that passes through unchanged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy_formats
import pytest

import bombus
from bombus import cast_weight
from bombus.kernels import dequantize, quantize
from bombus.policies.formats import find_format

FORMATS = [
    *("f8_e4m3fn(tile=16x24)", "f8_e4m3fn(tile=channel, scale=bf16)", "f8_e5m2(tile=tensor)", "int8", "int8(group=16)"),
    *("int4(group=8, zero_points)", "bfp8", "bfp8(axis=out)", "bfp4(scale_rule=search)", "mxfp8", "mxfp4", "nvfp4"),
    *("bf16", "f16", "f32"),
]


@pytest.fixture(scope="module")
def weight() -> jax.Array:
    """(34, 35): partial tiles and groups, an odd number of inputs; channels of different size."""
    random = np.random.default_rng(11)
    values = random.standard_normal((34, 35)) * np.exp(random.uniform(-2, 2, (34, 1)))
    return jnp.asarray(values, jnp.float32)


def expected(values: jax.Array, format: str) -> np.ndarray:
    """What is left of a weight (O, I) that is stored in this format."""
    return np.asarray(dequantize(quantize(values, find_format(format)), values.dtype))


@pytest.mark.parametrize("format", FORMATS)
def test_the_values_are_those_of_the_stored_weight(format: str, weight: jax.Array) -> None:
    """Bit for bit, in the shape and the type of the weight; and stored once more they stay."""
    found = cast_weight(weight, format)
    assert (found.shape, found.dtype) == (weight.shape, weight.dtype)
    np.testing.assert_array_equal(np.asarray(found), expected(weight, format))
    if format != "f32":
        assert (np.asarray(found) != np.asarray(weight)).any()


@pytest.mark.parametrize("format", ["bfp8", "bfp4(axis=out)", "mxfp4"])
def test_the_values_are_those_of_numpy(format: str, weight: jax.Array) -> None:
    """Formats whose scales are powers of two, in which nothing is left to rounding."""
    name, options = find_format(format).name, dict(find_format(format).options)
    values = np.asarray(weight)
    parts = numpy_formats.make_parts(values, name, **options)
    codes = numpy_formats.make_codes(values, parts, name, **options)
    expected = numpy_formats.decode(codes, parts, name, **options)
    np.testing.assert_array_equal(np.asarray(cast_weight(weight, format)), expected)


def test_a_format_is_anything_that_names_one(weight: jax.Array) -> None:
    for format in (find_format("bf16"), jnp.bfloat16, np.dtype("bfloat16"), " bf16 "):
        np.testing.assert_array_equal(
            np.asarray(cast_weight(weight, format)), np.asarray(weight.astype(jnp.bfloat16).astype(jnp.float32))
        )


@pytest.mark.parametrize("format", ["int8", "mxfp4"])
def test_bfloat16_comes_back_as_bfloat16(format: str, weight: jax.Array) -> None:
    """Quantized from its float32 values and rounded once."""
    half = weight.astype(jnp.bfloat16)
    found = cast_weight(half, format)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(found), expected(half.astype(jnp.float32), format).astype(jnp.bfloat16.dtype)
    )


@pytest.mark.parametrize("shape", [(34, 5, 7), (17, 2, 5, 7), (34, 35, 1)])
def test_all_axes_but_the_first_are_the_inputs(shape: tuple[int, ...], weight: jax.Array) -> None:
    """A convolution kernel (O, ...) has the values of its rows."""
    found = cast_weight(weight.reshape(shape), "int4(group=8)")
    assert found.shape == shape
    rows = weight.reshape(shape[0], -1)
    np.testing.assert_array_equal(np.asarray(found).reshape(rows.shape), expected(rows, "int4(group=8)"))


@pytest.mark.parametrize("format", ["int8", "bfp4", "nvfp4", "bf16"])
def test_the_gradient_passes_as_if_nothing_had_happened(format: str, weight: jax.Array) -> None:
    """Backward: that of the cast weight for the weight, exactly. Forward: the tangent."""
    x = jnp.linspace(-1, 1, 35, dtype=jnp.float32)

    def loss(values: jax.Array) -> jax.Array:
        return jnp.sum((values @ x) ** 2)

    found = jax.grad(lambda values: loss(cast_weight(values, format)))(weight)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(jax.grad(loss)(cast_weight(weight, format))))
    identity = jax.grad(lambda values: jnp.sum(cast_weight(values, format) * x))(weight)
    np.testing.assert_array_equal(np.asarray(identity), np.broadcast_to(np.asarray(x), weight.shape))
    tangent = jnp.cos(weight)
    value, passed = jax.jvp(lambda values: cast_weight(values, format), (weight,), (tangent,))
    np.testing.assert_array_equal(np.asarray(value), expected(weight, format))
    np.testing.assert_array_equal(np.asarray(passed), np.asarray(tangent))


def test_the_gradient_of_bfloat16_weights_is_bfloat16(weight: jax.Array) -> None:
    half = weight.astype(jnp.bfloat16)
    found = jax.grad(lambda values: cast_weight(values, "int8").sum().astype(jnp.float32))(half)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1)


def test_it_works_under_jit_vmap_and_in_a_second_derivative(weight: jax.Array) -> None:
    stack = jnp.stack([weight, 3 * weight, -weight])
    each = np.stack([expected(values, "int8(group=16)") for values in stack])
    mapped = jax.vmap(lambda values: cast_weight(values, "int8(group=16)"))
    np.testing.assert_array_equal(
        np.asarray(jax.jit(lambda values: cast_weight(values, "int8(group=16)"))(weight)), each[0]
    )
    np.testing.assert_array_equal(np.asarray(mapped(stack)), each)
    np.testing.assert_array_equal(np.asarray(jax.jit(mapped)(stack)), each)
    gradient = jax.jit(jax.vmap(jax.grad(lambda values: (cast_weight(values, "int8(group=16)") ** 2).sum())))(stack)
    np.testing.assert_array_equal(np.asarray(gradient), 2 * each)
    curvature = jax.grad(lambda s: jax.grad(lambda t: (cast_weight(t * weight, "bfp8") ** 2).sum())(s))
    assert float(curvature(jnp.float32(1.0))) == pytest.approx(2 * float((weight**2).sum()), rel=1e-5)


def test_training_through_it_finds_weights_on_the_grid_of_the_format() -> None:
    """Gradient descent on quantized weights, which without the straight-through gradient would not move at all."""
    target = jnp.asarray(np.random.default_rng(2).integers(-127, 128, (4, 16)) / 127, jnp.float32)
    target = target.at[:, 0].set(1.0)

    @jax.jit
    def step(values: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda values: ((cast_weight(values, "int8") - target) ** 2).sum())(values)
        return values - 0.1 * gradient

    values = jnp.zeros((4, 16), jnp.float32)
    for _ in range(60):
        values = step(values)
    assert np.abs(np.asarray(cast_weight(values, "int8")) - np.asarray(target)).max() < 0.5 / 127


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("bfp9", "type 'bfp9': is not a storage format. The closest are 'bfp8', 'bfp4'"),
        ("int4(groups=3)", "format 'int4': has no option 'groups'. Its options are group, zero_points, scale"),
        (
            None,
            "type 'None': is not a storage format. Known: f32, bf16, f16, f8_e4m3fn, f8_e5m2, int8, int4, bfp8, bfp",
        ),
    ],
)
def test_a_format_that_does_not_exist_is_refused(format: str | None, text: str, weight: jax.Array) -> None:
    with pytest.raises(bombus.PolicyError) as caught:
        cast_weight(weight, format)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("shape", [(), (35,)])
def test_an_array_without_inputs_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(bombus.PolicyError) as caught:
        cast_weight(jnp.zeros(shape, jnp.float32), "int8")
    assert str(caught.value) == (
        f"cast_weight: cannot store an array of shape {shape} in int8 (expected a weight of two axes or more)"
    )


def test_an_array_of_integers_is_refused() -> None:
    """Rounded values in an integer type would be other numbers altogether."""
    with pytest.raises(bombus.PolicyError) as caught:
        cast_weight(jnp.ones((2, 3), jnp.int32), "int8")
    assert str(caught.value) == (
        "cast_weight: cannot store an array of int32 in int8 (expected a weight of a floating type)"
    )
