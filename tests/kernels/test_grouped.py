"""Grouped products: every format against float64, what no row uses, what a loop keeps, gradients.

Weights are made by the NumPy model of tests/support, so that nothing here rests on the quantization of Bombus.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_formats as model
import pytest
from jax import lax

from bombus.kernels import Weight, group_rows, grouped_product
from bombus.kernels.grouped import block_rows
from bombus.policies.formats import FORMATS, find_format

F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
# Partial tiles of every format, an odd number of inputs, and a second tile of outputs.
EXPERTS, OUTPUTS, INPUTS = 5, 130, 67
CASES = ["f32", "bf16", "f16", "f8_e4m3fn(tile=64x32)", "f8_e4m3fn(tile=tensor, scale=e8m0)", "f8_e5m2"]
CASES += ["int8(group=32, scale=bf16)", "int4(group=32, zero_points)", "bfp8", "bfp4(axis=out)", "mxfp8", "mxfp4"]
CASES += ["nvfp4"]
IN_BF16 = ["f32", "bf16", "f8_e5m2", "int4(group=32, zero_points)", "nvfp4"]
Stacks = dict[str, Weight]


def test_every_format_is_here() -> None:
    """A new one must be added."""
    assert {find_format(case).name for case in CASES} == set(FORMATS)


@functools.cache
def stored() -> tuple[Stacks, dict[str, np.ndarray]]:
    """case -> (stack, its float64 values (E, O, I)): experts and rows that differ in magnitude."""
    random = np.random.default_rng(1)
    values = random.standard_normal((EXPERTS, OUTPUTS, INPUTS)) * np.exp2(random.integers(-3, 4, (EXPERTS, OUTPUTS, 1)))
    values = (values * np.exp2(np.arange(EXPERTS))[:, None, None]).astype(np.float32)
    stacks, exact = {}, {}
    for case in CASES:
        format = find_format(case)
        if not format.is_low:
            codes = values.astype(format.dtype)
            stacks[case], exact[case] = Weight.plain(jnp.asarray(codes)), codes.astype(np.float64)
            continue
        options = {"name": format.name, **dict(format.options)}
        parts = [model.make_parts(expert, **options) for expert in values]
        codes = [model.make_codes(expert, part, **options) for expert, part in zip(values, parts, strict=True)]
        arrays = {name: jnp.asarray(np.stack([part[name] for part in parts])) for name in parts[0]}
        packed = jnp.asarray(np.stack([model.pack(one) if format.packed else one for one in codes]))
        stacks[case] = Weight(codes=packed, **arrays, format=format, shape=(OUTPUTS, INPUTS))
        exact[case] = np.stack([model.decode(*pair, **options) for pair in zip(codes, parts, strict=True)])
    return stacks, exact


def routing(tokens: int, chosen: int) -> np.ndarray:
    """Experts (T, K); number 1 is never among them, and number 3 has most."""
    random = np.random.default_rng(tokens)
    some = [random.choice([3, 0, 2, 4], chosen, replace=False, p=[0.7, 0.1, 0.1, 0.1]) for _ in range(tokens)]
    return np.array(some, np.int32)


def x_of(tokens: int) -> np.ndarray:
    """Random float32 rows."""
    return np.random.default_rng(tokens).standard_normal((tokens, INPUTS)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="compute_type")
def run(x: jax.Array, experts: jax.Array, stacks: Stacks, compute_type: jnp.dtype = F32) -> dict[str, jax.Array]:
    """case -> products (T, K, O). One program for all: a compilation for each would take minutes."""
    groups = group_rows(experts, EXPERTS)
    x_PI = groups.gather(x)
    found = {case: grouped_product(x_PI, groups, stack, compute_type=compute_type) for case, stack in stacks.items()}
    return {case: y_PO[groups.place_TK] for case, y_PO in found.items()}


# M is 1, 4 (blocks in tiles of outputs, places and blocks that stay empty) and 32 (whole kernels).
SIZES = [(2, 2), (9, 2), (70, 2)]


@functools.cache
def products(tokens: int, chosen: int, compute_type: jnp.dtype = F32) -> dict[str, np.ndarray]:
    """case -> products (T, K, O)."""
    stacks = {case: stack for case, stack in stored()[0].items() if compute_type == F32 or case in IN_BF16}
    found = run(x_of(tokens), routing(tokens, chosen), stacks, compute_type)
    return {case: np.asarray(y) for case, y in found.items()}


def test_sizes_of_blocks() -> None:
    """A power of two, about the rows of an expert, at most 128; the sizes of these tests are each way there is."""
    assert [block_rows(tokens * chosen, EXPERTS) for tokens, chosen in SIZES] == [1, 4, 32]
    assert [block_rows(rows, 8) for rows in (1, 8, 9, 16, 17, 1024, 10**6)] == [1, 1, 2, 2, 4, 128, 128]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("tokens", "chosen"), SIZES)
def test_rows_are_multiplied_with_their_experts_kernel(tokens: int, chosen: int, case: str) -> None:
    """To float32's rounding, in float32, whatever the kernels are stored as."""
    x, kernels = x_of(tokens).astype(np.float64), stored()[1][case][routing(tokens, chosen)]
    expected = np.einsum("ti,tkoi->tko", x, kernels)
    bound = 4e-7 * np.sqrt(INPUTS) * np.einsum("ti,tkoi->tko", np.abs(x), np.abs(kernels))
    found = products(tokens, chosen)[case]
    assert found.dtype == np.float32
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("case", IN_BF16)
@pytest.mark.parametrize(("tokens", "tolerance"), [(2, 1e-6), (70, 4e-3)])
def test_computed_in_bf16(tokens: int, tolerance: float, case: str) -> None:
    """x is rounded to bf16; with many rows kernels are too."""
    x, kernels = x_of(tokens).astype(BF16).astype(np.float64), stored()[1][case][routing(tokens, 2)]
    expected = np.einsum("ti,tkoi->tko", x, kernels)
    error = np.abs(products(tokens, 2, BF16)[case] - expected).max()
    assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("experts", [[[4]], [[2]] * 7, [[0, 4], [4, 0], [0, 4]], [[e] for e in range(EXPERTS)] * 2])
def test_other_routings(experts: list[list[int]]) -> None:
    """One row; all of one expert; two experts in turns; each as often."""
    chosen, case = np.array(experts, np.int32), "int4(group=32, zero_points)"
    x = x_of(len(experts))
    found = run(x, chosen, {case: stored()[0][case]})[case]
    expected = np.einsum("ti,tkoi->tko", x.astype(np.float64), stored()[1][case][chosen])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("tokens", [2, 70])
def test_an_expert_without_rows_is_not_read(tokens: int) -> None:
    """Its NaN reaches nothing, also where blocks are left over."""
    stack = stored()[0]["f32"]
    spoilt = Weight.plain(stack.codes.at[1].set(jnp.nan))
    found = run(x_of(tokens), routing(tokens, 2), {"f32": spoilt})["f32"]
    np.testing.assert_array_equal(found, products(tokens, 2)["f32"])
    assert np.isnan(run(x_of(tokens), np.ones((tokens, 1), np.int32), {"f32": spoilt})["f32"]).all()


def test_combine_weighs_what_experts_return() -> None:
    """Rows go back to their tokens, whatever stands in empty places."""
    experts, x = routing(9, 2), x_of(9)
    groups = group_rows(jnp.asarray(experts), EXPERTS)
    y_PO = jnp.where((groups.token_P < 9)[:, None], groups.gather(x) * groups.expert_P[:, None].astype(F32), jnp.nan)
    weights = np.random.default_rng(0).random((9, 2)).astype(np.float32)
    found = groups.combine(y_PO, jnp.asarray(weights))
    np.testing.assert_allclose(found, x * (experts * weights).sum(axis=1)[:, None], rtol=1e-5, atol=1e-6)


GRADIENTS = ["f32", "f8_e4m3fn(tile=64x32)", "nvfp4"]


@pytest.mark.parametrize("tokens", [2, 70])
def test_gradient(tokens: int) -> None:
    """In x, and in kernels that are plain."""
    experts, x = routing(tokens, 2), x_of(tokens)
    stacks = {case: stored()[0][case] for case in GRADIENTS}

    def total(xs: dict[str, jax.Array], kernel: jax.Array) -> jax.Array:
        given = stacks | {"f32": Weight.plain(kernel)}
        return sum((run(x, experts, {case: given[case]})[case] ** 2).sum() for case, x in xs.items())

    in_x, in_kernel = jax.jit(jax.grad(total, (0, 1)))(dict.fromkeys(GRADIENTS, jnp.asarray(x)), stacks["f32"].codes)
    for case in GRADIENTS:
        kernels = stored()[1][case][experts]
        y = np.einsum("ti,tkoi->tko", x.astype(np.float64), kernels)
        expected = 2 * np.einsum("tko,tkoi->ti", y, kernels)
        np.testing.assert_allclose(in_x[case], expected, rtol=0, atol=3e-6 * np.abs(expected).max())
        if case == "f32":
            expected = np.zeros(in_kernel.shape)
            np.add.at(expected, experts, 2 * y[..., None] * x[:, None, None, :])
            np.testing.assert_allclose(in_kernel, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_vmap() -> None:
    """Each of a batch with its own routing."""
    case = "mxfp4"
    x, experts = np.stack([x_of(9), x_of(9) * 2]), np.stack([routing(9, 2), routing(9, 2)[::-1]])
    found = jax.jit(jax.vmap(lambda x, e: run(x, e, {case: stored()[0][case]})[case]))(x, experts)
    expected = np.einsum("bti,btkoi->btko", x.astype(np.float64), stored()[1][case][experts])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("tokens", [1, 128])
def test_a_loop_never_holds_converted_experts(tokens: int) -> None:
    """A stack of every format in a loop of unknown length: temporaries are rows, and less than two kernels."""
    size, experts = 256, 8
    stacks = []
    for case in CASES:
        format = find_format(case)
        parts = {name: jax.ShapeDtypeStruct(*part) for name, part in format.parts((experts, size, size)).items()}
        codes = jax.ShapeDtypeStruct(format.codes_shape((experts, size, size)), format.dtype)
        stacks.append(Weight(codes=codes, **parts, format=format, shape=(size, size)))

    def step(x: jax.Array, stacks: list[Weight]) -> jax.Array:
        for stack in stacks:
            groups = group_rows(lax.top_k(x[:, :experts], 2)[1], experts)
            y_PO = grouped_product(groups.gather(x), groups, stack, compute_type=BF16)
            x = jnp.tanh(groups.combine(y_PO, jnp.ones((tokens, 2)))).astype(x.dtype)
        return x

    def loop(x: Any, stacks: list[Weight], count: int) -> Any:
        return lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, step(c[1], stacks)), (0, x))[1]

    x = jax.ShapeDtypeStruct((tokens, size), BF16)
    options = {"xla_backend_optimization_level": 0}  # buffers are the same when LLVM does not optimize the code
    found = jax.jit(loop).lower(x, stacks, 3).compile(options).memory_analysis().temp_size_in_bytes
    rows = block_rows(tokens * 2, experts)
    places = (tokens * 2 + min(experts, tokens * 2) * (rows - 1)) // rows * rows
    assert found < 1.9 * 4 * size * size + 4 * 4 * places * size
