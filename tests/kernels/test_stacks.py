"""Stacks of experts: quantized, dequantized and requantized as each expert by itself, bit for bit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_format import EACH, F32, as_bytes, parts_of

from bombus.kernels import Weight, dequantize, quantize, requantize
from bombus.policies.formats import find_format

SHAPE = (3, 40, 37)
CASES = [*EACH, "f8_e4m3fn", "int8", "int4(group=channel, zero_points, scale=f16)"]


@functools.cache
def values() -> np.ndarray:
    """Experts that differ in magnitude."""
    drawn = np.random.default_rng(5).standard_normal(SHAPE) * np.exp2(np.arange(0, -9, -3))[:, None, None]
    return drawn.astype(np.float32)


@jax.jit
def both(values: jax.Array) -> dict[str, tuple[Weight, list[Weight], jax.Array, list[jax.Array]]]:
    """case -> (the stack, its experts by themselves, the values of both)."""
    found = {}
    for case in CASES:
        stack = quantize(values, find_format(case))
        experts = [quantize(expert, find_format(case)) for expert in values]
        found[case] = (stack, experts, dequantize(stack, F32), [dequantize(expert, F32) for expert in experts])
    return found


@functools.cache
def stacks() -> dict[str, tuple[Weight, list[Weight], jax.Array, list[jax.Array]]]:
    """`both` of the values: one program for all formats."""
    return both(values())


def assert_stacked(stack: Weight, experts: list[Weight]) -> None:
    """Every array holds those of the experts."""
    assert (stack.format, stack.shape, stack.experts) == (experts[0].format, SHAPE[1:], SHAPE[0])
    assert stack.parts.keys() == experts[0].parts.keys()
    expected = np.stack([np.asarray(expert.codes) for expert in experts])
    np.testing.assert_array_equal(as_bytes(np.asarray(stack.codes)), as_bytes(expected))
    for name, part in parts_of(stack).items():
        np.testing.assert_array_equal(as_bytes(part), as_bytes(np.stack([parts_of(one)[name] for one in experts])))


@pytest.mark.parametrize("case", CASES)
def test_a_stack_is_its_experts(case: str) -> None:
    """Codes, scales, zero points and the scale of the tensor, and the values of them all."""
    stack, experts, dequantized, each = stacks()[case]
    assert_stacked(stack, experts)
    np.testing.assert_array_equal(dequantized, np.stack(each))
    format = find_format(case)
    assert sum(array.nbytes for array in (stack.codes, *stack.parts.values())) == format.nbytes(SHAPE)
    assert {name: (part.shape, part.dtype) for name, part in stack.parts.items()} == format.parts(SHAPE)


@pytest.mark.parametrize("case", ["f8_e4m3fn", "int4(group=64, zero_points)", "nvfp4"])
def test_one_expert_of_a_stack(case: str) -> None:
    """With its own parts; an index past the end is the last."""
    stack, experts, *_ = stacks()[case]
    for index, expected in ((0, experts[0]), (jnp.int32(2), experts[2]), (7, experts[2])):
        found = stack.expert(index)
        assert (found.format, found.shape, found.experts) == (expected.format, expected.shape, None)
        for array, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(as_bytes(np.asarray(array)), as_bytes(np.asarray(other)))


@pytest.mark.parametrize(
    ("before", "after"),
    [("f8_e4m3fn", "int4(group=32, scale=f32)"), ("int8", "nvfp4"), ("mxfp8", "bf16"), ("int8", "int8(scale=bf16)")],
)
def test_a_stack_in_another_format(before: str, after: str) -> None:
    """As each expert; where only the type of scales differs codes stay."""
    stack, experts, *_ = stacks()[before]
    assert_stacked(requantize(stack, find_format(after)), [requantize(one, find_format(after)) for one in experts])


def test_plain_stacks() -> None:
    """A cast, each way."""
    stack = quantize(jnp.asarray(values()), find_format("bf16"))
    np.testing.assert_array_equal(stack.codes, values().astype(jnp.bfloat16))
    assert_stacked(
        requantize(stack, find_format("int8")), [requantize(stack.expert(i), find_format("int8")) for i in range(3)]
    )


@pytest.mark.parametrize("case", ["f8_e4m3fn", "nvfp4", "int8"])
def test_experts_are_never_all_in_float32(case: str) -> None:
    """Quantizing and dequantizing a stack take little beside its bytes: here 64 experts of 128x128."""
    shape = (64, 128, 128)
    format = find_format(case)

    def there(values: jax.Array) -> Weight:
        return quantize(values, format)

    def back(stack: Weight) -> jax.Array:
        return dequantize(stack, jnp.dtype(jnp.bfloat16))

    given = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    stack = jax.eval_shape(there, given)
    for program, argument in ((there, given), (back, stack)):
        found = jax.jit(program).lower(argument).compile().memory_analysis().temp_size_in_bytes
        # A copy of the bf16 values and one of the codes is three quarters of what they are in float32.
        assert found < 0.8 * 4 * np.prod(shape)
