"""Products with what comes before and behind them in one call: against float64, and under JAX's transformations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from native_weights import KERNELS, REASON, SOME, exact, rows_of, weight_of

from bombus.kernels import Normed, Weight, fused_products, native
from bombus.kernels.native_rows import rms_norm
from bombus.layers.activations import ACTIVATIONS

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
F32, BF16, F16 = jnp.dtype(jnp.float32), jnp.dtype(ml_dtypes.bfloat16), jnp.dtype(jnp.float16)
OUTPUTS, INPUTS = 75, 130  # several partial tiles of most formats
# How far a rounding may be off.
UNIT = {F32: 2.0**-24, BF16: 2.0**-8, F16: 2.0**-11}
each_kernel = pytest.mark.parametrize("kernels", KERNELS)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


EXACT = {"silu": silu, "gelu_pytorch_tanh": gelu_tanh}


class Case:
    """Rows, two weights, and all that can come before and behind them."""

    def __init__(self, format: str, rows: int, dtype: Any, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        # Small values, so that activations have something to do.
        self.x = (rows_of(rows, INPUTS, np.float32, random) / 4).astype(dtype)
        self.weights = tuple(weight_of(format, (OUTPUTS, INPUTS), random) for _ in range(2))
        self.values = [exact(weight) for weight in self.weights]
        size = np.abs(self.x.astype(np.float64) @ self.values[0].T).mean()
        self.x = (self.x.astype(np.float64) / size).astype(dtype)
        self.scale = (random.standard_normal(INPUTS) / size).astype(dtype)
        self.biases = tuple(random.standard_normal(OUTPUTS).astype(kind) for kind in (dtype, np.float32))
        self.residual = random.standard_normal((rows, OUTPUTS)).astype(dtype)

    def norm(self, offset: float = 0.0) -> Normed:
        return Normed(jnp.asarray(self.scale), 1e-3, offset, self.dtype)

    def product(self, index: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sums of one of the weights in float64, and how far float32 may be off them."""
        values = self.values[index]
        return x @ values.T, 1e-6 * (np.abs(x) @ np.abs(values).T) + 1e-30


def close(found: Any, expected: np.ndarray, off: np.ndarray, times: int, case: Any) -> None:
    """Off by no more than what came in, and `times` roundings of what is there."""
    found = np.asarray(found, np.float64)
    bound = 1.1 * off + times * 1.01 * UNIT[np.dtype(case[-1])] * np.abs(expected) + 1e-12
    wrong = ~(np.abs(found - expected) <= bound)
    assert not wrong.any(), (case, np.argwhere(wrong)[:4].tolist(), found[wrong][:4], expected[wrong][:4])


def called(run: Any, *arguments: Any) -> str:
    """The text of a program, which has one call and nothing else of XLA's that computes."""
    text: str = jax.jit(run).lower(*arguments).compile().as_text()
    assert text.count('custom_call_target="bombus_product"') == 1
    assert " fusion(" not in text
    return text


@each_kernel
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 8, 21])
def test_a_bias_and_a_residual(kernels: str, rows: int, dtype: Any) -> None:
    """Every format; each sum is rounded to the output type, then added in the type of the residual."""
    for seed, format in enumerate(SOME):
        case = Case(format, rows, dtype, seed)
        if not native.runs(case.weights[0], dtype):  # XLA rounds the weight
            continue
        run = partial(
            fused_products, compute_type=dtype, output_types=(dtype, dtype), biases=case.biases, residual=case.residual
        )
        with native.using_kernels(kernels):
            made = jax.jit(run)(case.x, case.weights)
        for index, y in enumerate(made):
            assert y.dtype == dtype
            sums, off = case.product(index, case.x.astype(np.float64))
            biased = sums + case.biases[index].astype(np.float64)
            rounding = UNIT[dtype] * np.abs(biased)
            close(
                y, biased + case.residual.astype(np.float64), off + 1.01 * rounding, 1, (kernels, format, rows, dtype)
            )


@each_kernel
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_a_gate_after_a_norm(kernels: str, rows: int, activation: str, dtype: Any) -> None:
    """norm, two products with biases, activation(first) * second; and the activation of one product."""
    for seed, format in enumerate(("f8_e4m3fn(tile=48x80)", "int8", "int4", "bf16", "f32")):
        case = Case(format, rows, dtype, seed)
        if not native.runs(case.weights[0], dtype):
            continue
        gate = partial(
            fused_products, compute_type=dtype, output_types=(dtype, dtype), activation=ACTIVATIONS[activation]
        )
        alone = partial(fused_products, compute_type=dtype, output_types=(dtype,), activation=ACTIVATIONS[activation])
        with native.using_kernels(kernels):
            (gated,) = jax.jit(partial(gate, biases=case.biases, norm=case.norm(1.0)))(case.x, case.weights)
            (active,) = jax.jit(alone)(case.x, case.weights[:1])
            normed = rms_norm(
                case.x, case.scale, epsilon=1e-3, offset=1.0, dtype=dtype
            )  # test_native_rows.py has its values
        unit = UNIT[dtype]
        sums = [case.product(index, np.asarray(normed, np.float64)) for index in range(2)]
        biased = [y + bias.astype(np.float64) for (y, _), bias in zip(sums, case.biases, strict=True)]
        # How far each may be off; the slope of either activation is below 1.2.
        first, second = (off + unit * np.abs(y) for (_, off), y in zip(sums, biased, strict=True))
        left = EXACT[activation](biased[0])
        first = 1.2 * first + unit * np.abs(left) + 3e-7 * np.abs(biased[0])
        off = first * np.abs(biased[1]) + second * np.abs(left) + first * second
        close(gated, left * biased[1], off, 1, (kernels, format, rows, dtype))
        y, off = case.product(0, case.x.astype(np.float64))
        off = 1.2 * (off + unit * np.abs(y)) + 3e-7 * np.abs(y)
        close(active, EXACT[activation](y), off, 1, (kernels, format, rows, dtype))


@each_kernel
@pytest.mark.parametrize("rows", [1, 20])
def test_a_pair_of_two_formats(kernels: str, rows: int) -> None:
    """Of which each is multiplied in another way, in parts that are cut for the first of them."""
    for seed, formats in enumerate(permutations(["f8_e4m3fn", "int4(group=32, zero_points)", "nvfp4", "bf16"], 2)):
        case = Case(formats[0], rows, BF16, seed)
        other = weight_of(formats[1], (OUTPUTS, INPUTS), np.random.default_rng(seed + 50))
        case.weights, case.values = (case.weights[0], other), [case.values[0], exact(other)]
        run = partial(fused_products, compute_type=BF16, output_types=(F32, F32), activation=ACTIVATIONS["silu"])
        with native.using_kernels(kernels):
            (found,) = jax.jit(run)(case.x, case.weights)
        (first, off), (second, more) = (case.product(index, case.x.astype(np.float64)) for index in range(2))
        off, left = 1.2 * off + 1e-6 * np.abs(first), silu(first)
        close(found, left * second, off * np.abs(second) + more * np.abs(left) + off * more, 3, (kernels, formats, F32))


@each_kernel
def test_activations_of_all_sizes(kernels: str) -> None:
    """From tiny to infinite, of both signs, and of what is no number."""
    random = np.random.default_rng(3)
    sizes = np.concatenate([np.logspace(-30, 4, 200), [0.0, 1e30, np.inf]])
    given = np.concatenate([sizes, -sizes, [np.nan]]).astype(np.float32)
    weight = Weight.plain(jnp.eye(len(given), 1, dtype=BF16) * 0)  # the bias is all that is there
    for name in EXACT:
        run = partial(fused_products, compute_type=F32, output_types=(F32,), activation=ACTIVATIONS[name])
        with native.using_kernels(kernels):
            (found,) = jax.jit(partial(run, biases=(given,)))(random.standard_normal((1, 1)).astype(F32), (weight,))
        with np.errstate(over="ignore", invalid="ignore"):
            expected = EXACT[name](given.astype(np.float64))
        # 1 + tanh loses digits near -5 in float32; what exp makes below its normal numbers is 0.
        np.testing.assert_allclose(found[0], expected, rtol=2e-6, atol=1e-36 if name == "silu" else 6e-7, err_msg=name)


def test_one_call_is_all() -> None:
    """Norm, gate, bias and residual are no operations of XLA's; neither is the type of the result."""
    case = Case("f8_e4m3fn", 1, BF16, 0)
    x, weights = jnp.asarray(case.x), case.weights
    two = {"compute_type": BF16, "output_types": (BF16, BF16)}
    called(partial(fused_products, **two, norm=case.norm()), x, weights)
    called(partial(fused_products, **two, activation=ACTIVATIONS["silu"], norm=case.norm()), x, weights)
    called(partial(fused_products, **two, biases=case.biases, residual=case.residual), x, weights)
    text = called(partial(fused_products, **two), x, weights)
    assert f"bf16[1,{OUTPUTS}]" in text


def test_nothing_gives_nothing() -> None:
    """No rows, and no outputs."""
    case = Case("int8", 2, F32, 1)
    nobody, none = case.x[:0], weight_of("bf16", (0, INPUTS), np.random.default_rng(2))
    run = partial(fused_products, compute_type=F32, norm=case.norm(), activation=ACTIVATIONS["silu"])
    assert jax.jit(partial(run, output_types=(F32, F32)))(nobody, case.weights)[0].shape == (0, OUTPUTS)
    assert jax.jit(partial(run, output_types=(BF16,)))(case.x, (none,))[0].shape == (2, 0)


def reference(x: jax.Array, weights: Sequence[Weight], case: Case, dtype: Any) -> jax.Array:
    """norm, gate, activation and residual by XLA, in float32."""
    x = x.astype(jnp.float32)
    x = x / jnp.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-3) * case.scale.astype(np.float32)
    first, second = (x @ value.T.astype(np.float32) for value in case.values)
    return jax.nn.silu(first + case.biases[0].astype(np.float32)) * second + case.residual


def gated(x: jax.Array, weights: Sequence[Weight], case: Case, dtype: Any) -> jax.Array:
    return fused_products(
        x,
        weights,
        compute_type=dtype,
        output_types=(dtype, dtype),
        biases=(case.biases[0], None),
        norm=case.norm(),
        activation=ACTIVATIONS["silu"],
        residual=jnp.broadcast_to(case.residual, (*x.shape[:-1], OUTPUTS)),
    )[0]


def test_derivatives_and_vmap() -> None:
    """In x, through the norm, both products, the gate and the residual; over an axis in front; both at once."""
    case = Case("f8_e4m3fn(tile=48x80)", 4, F32, 7)
    stack = jnp.stack([case.x, case.x[::-1], 2 * case.x])

    def loss(run: Any, x: jax.Array) -> jax.Array:
        return (run(x, case.weights, case, F32) ** 2).sum()

    np.testing.assert_allclose(
        jax.jit(jax.grad(partial(loss, gated)))(case.x),
        jax.grad(partial(loss, reference))(case.x),
        rtol=2e-4,
        atol=2e-3,
    )
    each = jnp.stack([gated(x, case.weights, case, F32) for x in stack])
    run = jax.jit(jax.vmap(lambda x: gated(x, case.weights, case, F32)))
    np.testing.assert_allclose(run(stack), each, rtol=2e-5, atol=2e-5)
    slopes = jax.jit(jax.vmap(jax.grad(partial(loss, gated))))(stack)
    expected = jax.vmap(jax.grad(partial(loss, reference)))(stack)
    np.testing.assert_allclose(slopes, expected, rtol=2e-4, atol=1e-2)


def test_what_the_kernels_lack_is_done_apart() -> None:
    """Another activation, float16, outputs of different types or sizes, a residual that is broadcast: equal values."""
    case = Case("int8", 3, F32, 9)
    x = jnp.asarray(case.x)
    plain = fused_products(x, case.weights, compute_type=F32, output_types=(F32, F32))
    run = partial(fused_products, x, case.weights, compute_type=F32)
    for name in ("gelu", "relu"):
        activation = ACTIVATIONS[name]
        (found,) = run(output_types=(F32, F32), activation=activation)
        np.testing.assert_allclose(found, activation(plain[0]) * plain[1], rtol=1e-6)
    mixed = run(output_types=(F16, BF16), residual=jnp.float16(1.5))
    for found, y, dtype in zip(mixed, plain, (F16, BF16), strict=True):
        assert found.dtype == F16
        np.testing.assert_array_equal(found, y.astype(dtype).astype(F16) + F16.type(1.5))
    (found,) = run(output_types=(BF16, F32), activation=ACTIVATIONS["silu"])
    assert found.dtype == BF16
    np.testing.assert_array_equal(found, ACTIVATIONS["silu"](plain[0].astype(BF16)) * plain[1].astype(BF16))


SHARDED = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import bombus
from bombus.generation.next_token import next_token
from bombus.generation.sampling import make_sampling
from bombus.kernels import Normed, fused_products
from bombus.layers.activations import ACTIVATIONS
from native_weights import rows_of, weight_of

random = np.random.default_rng(0)
mesh = Mesh(np.array(jax.devices()), ("d",))
x, residual = (jnp.asarray(rows_of(8, size, np.float32, random)) for size in (130, 75))
scale = jnp.asarray(random.standard_normal(130), jnp.float32)
weights = tuple(weight_of("int8", (75, 130), random) for _ in range(2))
def run(x, residual):
    return fused_products(
        x, weights, compute_type=np.float32, output_types=(np.float32,) * 2, norm=Normed(scale, 1e-3, 0.0, x.dtype),
        activation=ACTIVATIONS["silu"], residual=residual,
    )[0]
expected = np.asarray(jax.jit(run)(x, residual))
sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d")))
assert "bombus_product" in sharded.lower(x, residual).as_text()
size = np.abs(expected).max()
assert np.abs(np.asarray(sharded(x, residual)) - expected).max() <= 1e-5 * size
slope = jax.jit(jax.grad(lambda x: (sharded(x, residual) ** 2).sum()))(x)
right = jax.jit(jax.grad(lambda x: (run(x, residual) ** 2).sum()))(x)
assert np.abs(np.asarray(slope - right)).max() <= 1e-5 * np.abs(np.asarray(right)).max()
placed = (jax.device_put(each, NamedSharding(mesh, P("d"))) for each in (x, residual))
assert np.abs(np.asarray(jax.jit(run)(*placed)) - expected).max() <= 1e-5 * size
config = bombus.GenerationConfig(do_sample=True, temperature=0.7)
sampling = make_sampling(
    config, batch=8, vocab_size=75, steps=1, max_new_tokens=1, stop_ids=(), seeds=range(8)
)
of_rows = jax.tree.map(lambda array: P("d") if array.shape == (8,) else P(), sampling)
# Unchecked: the loops of XLA's way, which is traced too, begin with what differs nowhere.
draw = jax.shard_map(next_token, mesh=mesh, in_specs=(P("d"), of_rows, P()), out_specs=P("d"), check_vma=False)
np.testing.assert_array_equal(
    jax.jit(draw)(residual, sampling, jnp.int32(3)), next_token(residual, sampling, jnp.int32(3))
)
print("right")
"""


def test_shard_map() -> None:
    """On four devices: rows divided, differentiated, and sharded arrays without it; the next tokens too."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    support = f"{os.path.dirname(__file__)}/../support"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": support}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHARDED], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
