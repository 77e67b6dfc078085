"""Feed-forwards of experts, mixtures of them, plain ones, and activations, against float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bombus import Policy
from bombus.kernels import dequantize, group_rows, quantize
from bombus.layers import (
    ClampedSwish,
    ExpertDense,
    Experts,
    FeedForward,
    GatedFeedForward,
    Layer,
    MixtureFeedForward,
    Router,
    Routing,
    initial_values,
    initial_weight,
)
from bombus.policies.errors import SpecError
from bombus.policies.formats import find_format

E, D, F = 5, 12, 20
Values = dict[str, np.ndarray]


def filled(module: nnx.Module, spread: float = 0.5) -> Values:
    """Random float32 parameters, set in the module: path -> float64 values."""
    random = np.random.default_rng(4)
    found = {}
    for key, variable in nnx.to_flat_state(nnx.state(module)):
        values = (spread * random.standard_normal(variable.get_value().shape)).astype(np.float32)
        part = module
        for name in key:
            part = getattr(part, name)
        part.set_value(jnp.asarray(values))
        found[".".join(map(str, key))] = values.astype(np.float64)
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def gated(x: np.ndarray, values: Values, layer: str, expert: int | None = None, clamped: bool = False) -> np.ndarray:
    """The gated feed-forward at a path, of one expert where there are several."""

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = values[f"{layer}{name}.kernel"], values.get(f"{layer}{name}.bias")
        if expert is not None:
            kernel, bias = kernel[expert], None if bias is None else bias[expert]
        return kernel @ x + (0 if bias is None else bias)

    gate, up = dense(x, "gate"), dense(x, "intermediate")
    if clamped:
        gate, up = np.minimum(gate, 2.0), np.clip(up, -2.0, 2.0)
        return dense((up + 1) * gate * sigmoid(1.5 * gate), "output")
    return dense(gate * sigmoid(gate) * up, "output")


def rows(count: int) -> np.ndarray:
    """Random float32 rows."""
    return np.random.default_rng(count).standard_normal((count, D)).astype(np.float32)


@pytest.mark.parametrize("tokens", [1, 9, 60])
@pytest.mark.parametrize("clamped", [False, True])
def test_experts(tokens: int, clamped: bool) -> None:
    """The weighted sum of gated feed-forwards: silu without biases, and gpt-oss's clamped gate with them."""
    activation = ClampedSwish(limit=2.0, alpha=1.5) if clamped else "silu"
    module = Experts(D, F, experts=E, activation=activation, bias=clamped)
    values, x = filled(module), rows(tokens)
    random = np.random.default_rng(tokens)
    chosen = np.array([random.choice(E - 1, 2, replace=False) for _ in range(tokens)], np.int32)
    weights = random.random((tokens, 2)).astype(np.float32)
    found = jax.jit(lambda *given: module(*given))(x, chosen, weights)
    expected = [
        sum(weight * gated(row, values, "", expert, clamped) for expert, weight in zip(own, scale, strict=True))
        for row, own, scale in zip(x.astype(np.float64), chosen, weights, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if clamped:  # both limits count
        gate = np.einsum("td,efd->tef", x, values["gate.kernel"])
        assert (gate > 2).any()


def test_a_clamped_gate_is_not_clamped_below() -> None:
    """At gpt-oss's own limit and alpha."""
    gate, up = np.array([-9.0, 9.0, 1.0, 1.0]), np.array([1.0, 1.0, 9.0, -9.0])
    expected = [-9 * 2 * sigmoid(-9 * 1.702), 7 * 2 * sigmoid(7 * 1.702), 8 * sigmoid(1.702), -6 * sigmoid(1.702)]
    found = ClampedSwish()(jnp.asarray(gate, jnp.float32), jnp.asarray(up, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_mixture(shared: bool) -> None:
    """By its router, and one feed-forward that all rows share; any axes in front."""
    router = Router(D, E, Routing(top_k=2, scoring="sigmoid", scale=1.5), selection_bias=True)
    common = GatedFeedForward(D, 7, activation="silu") if shared else None
    module = MixtureFeedForward(D, F, E, router=router, activation="silu", shared=common)
    values, x = filled(module), rows(12)
    found = jax.jit(lambda x: module(x))(x.reshape(3, 4, D))
    assert (found.shape, found.dtype) == ((3, 4, D), np.float32)
    for row, y in zip(x.astype(np.float64), np.asarray(found).reshape(12, D), strict=True):
        scores = sigmoid(values["router.kernel"] @ row)
        chosen = np.argsort(-(scores + values["router.selection_bias"]))[:2]
        weights = 1.5 * scores[chosen] / scores[chosen].sum()
        expected = sum(w * gated(row, values, "experts.", e) for e, w in zip(chosen, weights, strict=True))
        np.testing.assert_allclose(y, expected + (gated(row, values, "shared.") if shared else 0), rtol=1e-4, atol=1e-5)


def test_parameters_of_a_mixture() -> None:
    """Their names and shapes."""
    router = Router(D, E, Routing(top_k=2), bias=True, selection_bias=True)
    module = MixtureFeedForward(D, F, E, router=router, activation=ClampedSwish(), bias=True)
    shapes = {".".join(key): value.get_value().shape for key, value in nnx.to_flat_state(nnx.state(module))}
    assert shapes == {
        "router.kernel": (E, D),
        "router.bias": (E,),
        "router.selection_bias": (E,),
        "experts.gate.kernel": (E, F, D),
        "experts.gate.bias": (E, F),
        "experts.intermediate.kernel": (E, F, D),
        "experts.intermediate.bias": (E, F),
        "experts.output.kernel": (E, D, F),
        "experts.output.bias": (E, D),
    }
    layers = [part for _, part in nnx.iter_modules(module) if isinstance(part, Layer)]
    assert len(layers) == 4


def test_expert_dense_follows_its_policies() -> None:
    """compute rounds the rows, output is returned, and a bias has its own type."""
    layer = ExpertDense(D, 3, experts=E, bias=True)
    layer.kernel.set_value(jnp.ones((E, 3, D), jnp.float32))
    layer.bias.set_value(jnp.full((E, 3), 1 / 3, jnp.float32))
    policy = Policy(compute={"kernel": "bf16", "bias": "bf16"}, output="f16")
    layer.set_policies({"kernel": policy, "bias": policy})
    groups = group_rows(jnp.array([[2]]), E)
    found = layer(groups.gather(jnp.full((1, D), 1 / 3, jnp.float32)), groups)
    third = float(jnp.bfloat16(1 / 3))
    assert found.dtype == jnp.float16
    assert float(found[0, 0]) == pytest.approx(float(np.float16(D * third + third)), rel=1e-3)
    assert layer(groups.gather(jnp.ones((1, D), jnp.bfloat16)), groups).dtype == jnp.float16


@pytest.mark.parametrize("format", ["bf16", "f8_e4m3fn(tile=8x8)", "int4(group=8, zero_points)", "nvfp4"])
def test_experts_stored_in_a_format(format: str) -> None:
    """Room for the codes and parts of every expert, and the product of what they mean."""
    layer = ExpertDense(D, F, experts=E)
    layer.store_as("kernel", find_format(format))
    stack = initial_weight("kernel", jax.random.key(0), (E, F, D), find_format(format))
    for name, array in {"kernel": stack.codes, **stack.parts}.items():
        declared = getattr(layer, name).get_value()
        assert (declared.shape, declared.dtype) == (array.shape, array.dtype)
        getattr(layer, name).set_value(array)
    groups = group_rows(jnp.array([[3], [1], [3]]), E)
    found = layer(groups.gather(rows(3)), groups)[groups.place_TK[:, 0]]
    kernels = np.asarray(dequantize(stack, jnp.dtype(jnp.float32)))[[3, 1, 3]]
    np.testing.assert_allclose(found, np.einsum("tof,tf->to", kernels, rows(3)), rtol=1e-4, atol=1e-6)


def test_initial_stacks_are_their_experts() -> None:
    """Each is drawn with a key of its own and quantized by itself."""
    key, format = jax.random.key(3), find_format("f8_e4m3fn(tile=tensor)")
    stack = jax.jit(lambda: initial_weight("kernel", key, (E, F, D), format))()
    for index in range(E):
        drawn = initial_values("kernel", jax.random.fold_in(key, index), (F, D))
        expected = quantize(drawn, format)
        # One program rounds the products of constants otherwise than two.
        np.testing.assert_allclose(stack.scale_inv[index], expected.scale_inv, rtol=1e-6)
        assert (stack.codes[index].view(jnp.uint8) == expected.codes.view(jnp.uint8)).mean() > 0.98
    assert len(np.unique(stack.scale_inv)) == E


@pytest.mark.parametrize("name", ["bias", "selection_bias", "sinks"])
def test_what_begins_with_zeros(name: str) -> None:
    """Biases, and what attention adds to its sum."""
    assert initial_values(name, jax.random.key(0), (3,)).tolist() == [0, 0, 0]


def test_a_plain_feed_forward() -> None:
    """GPT-2's: with biases and without a gate."""
    module = FeedForward(D, F, activation="relu2")
    values, x = filled(module), rows(4).reshape(2, 2, D)
    inner = x.astype(np.float64) @ values["intermediate.kernel"].T + values["intermediate.bias"]
    expected = np.maximum(inner, 0) ** 2 @ values["output.kernel"].T + values["output.bias"]
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_activation() -> None:
    """Refused when the layer is made, with the closest names."""
    for make in (lambda: FeedForward(D, F, activation="gelu_fats"), lambda: Experts(D, F, experts=2, activation="?")):
        with pytest.raises(SpecError, match=r"^activation '(gelu_fats|\?)': is not supported"):
            make()
