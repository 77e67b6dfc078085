"""Routers against their definitions, written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bombus.layers import Router, Routing
from bombus.policies.errors import SpecError
from bombus.policies.formats import find_format

ROWS, HIDDEN, EXPERTS = 7, 5, 12
RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((ROWS, HIDDEN)).astype(np.float32)
KERNEL = RANDOM.standard_normal((EXPERTS, HIDDEN)).astype(np.float32)
BIAS = RANDOM.standard_normal(EXPERTS).astype(np.float32)


def best(scores: np.ndarray, count: int) -> list[int]:
    """The places of the largest, in order; of equals the first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]


def softmax(values: np.ndarray) -> np.ndarray:
    """Along the only axis."""
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def routed(routing: Routing, **given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights and experts of X by a Router that holds KERNEL and what is given."""
    router = Router(HIDDEN, EXPERTS, routing, bias="bias" in given, selection_bias="selection_bias" in given)
    for name, values in {"kernel": KERNEL, **given}.items():
        getattr(router, name).set_value(jnp.asarray(values))
    weights, experts = jax.jit(lambda x: router(x))(X)
    assert (weights.dtype, experts.dtype) == (np.float32, np.int32)
    return np.asarray(weights), np.asarray(experts)


def expect(found: tuple[np.ndarray, np.ndarray], row_of: object) -> None:
    """row_of(logits) gives {expert: weight} in order, for every row."""
    weights, experts = found
    for row, logits in enumerate(X.astype(np.float64) @ KERNEL.astype(np.float64).T):
        expected = row_of(logits)
        assert experts[row].tolist() == list(expected)
        np.testing.assert_allclose(weights[row], list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_softmax_over_all(normalized: bool) -> None:
    """Mixtral, and Qwen3-MoE with `norm_topk_prob` or without."""

    def row_of(logits: np.ndarray) -> dict[int, float]:
        probabilities = softmax(logits)
        chosen = {expert: probabilities[expert] for expert in best(probabilities, 3)}
        total = sum(chosen.values()) if normalized else 1
        return {expert: weight / total for expert, weight in chosen.items()}

    expect(routed(Routing(top_k=3, normalized=normalized)), row_of)


def test_softmax_over_the_chosen_with_a_bias() -> None:
    """gpt-oss."""

    def row_of(logits: np.ndarray) -> dict[int, float]:
        chosen = best(logits + BIAS, 4)
        return dict(zip(chosen, softmax((logits + BIAS)[chosen]), strict=True))

    expect(routed(Routing(top_k=4, scoring="chosen_softmax"), bias=BIAS), row_of)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (3, 3), (12, 6)])
def test_sigmoid_within_the_best_groups(groups: int, top_groups: int, normalized: bool) -> None:
    """DeepSeek-V3: the bias counts for the choice of groups and experts, and not for the weights."""

    def row_of(logits: np.ndarray) -> dict[int, float]:
        scores = 1 / (1 + np.exp(-logits))
        ranked = scores + BIAS
        by_group = ranked.reshape(groups, -1)
        kept = best(np.array([sum(sorted(group)[-2:]) for group in by_group]), top_groups)
        size = EXPERTS // groups
        outside = [expert for expert in range(EXPERTS) if expert // size not in kept]
        ranked[outside] = -np.inf
        chosen = {expert: scores[expert] for expert in best(ranked, 4)}
        total = sum(chosen.values()) if normalized else 1
        return {expert: weight / total * 2.5 for expert, weight in chosen.items()}

    routing = Routing(
        top_k=4, scoring="sigmoid", normalized=normalized, scale=2.5, groups=groups, top_groups=top_groups
    )
    expect(routed(routing, selection_bias=BIAS), row_of)


def test_of_equals_the_first_are_chosen() -> None:
    """Experts and groups, as torch.topk does."""
    routing = Routing(top_k=3, scoring="sigmoid", groups=4, top_groups=2)
    weights, experts = routing.choose(jnp.zeros((2, 12)))
    assert experts.tolist() == [[0, 1, 2]] * 2
    np.testing.assert_allclose(weights, np.full((2, 3), 1 / 3), rtol=1e-6)


def test_a_sum_of_zero_divides_nothing() -> None:
    """Sigmoids that are zero in float32 give weights of zero, not NaN."""
    weights, _ = Routing(top_k=2, scoring="sigmoid").choose(jnp.full((1, 4), -200.0))
    assert weights.tolist() == [[0, 0]]


def test_logits_are_computed_in_float32() -> None:
    """Whatever the type of x, where no policy says."""
    router = Router(HIDDEN, EXPERTS, Routing(top_k=EXPERTS))
    router.kernel.set_value(jnp.asarray(KERNEL))
    x = jnp.asarray(X).astype(jnp.bfloat16)
    exact = np.asarray(x).astype(np.float64) @ KERNEL.astype(np.float64).T
    weights, experts = router(x)
    found = np.take_along_axis(np.asarray(weights), np.argsort(np.asarray(experts), axis=1), axis=1)
    np.testing.assert_allclose(found, [softmax(logits) for logits in exact], rtol=1e-5)


def test_a_router_may_be_stored_in_any_format() -> None:
    """Its kernel is a weight like others."""
    router = Router(32, EXPERTS, Routing(top_k=2), selection_bias=True)
    router.store_as("kernel", find_format("nvfp4"))
    assert router.kernel.get_value().shape == (EXPERTS, 16)
    assert router.scale_inv.get_value().shape == (EXPERTS, 2)
    assert router.selection_bias.get_value().dtype == np.float32


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (Routing(top_k=2, groups=5), "router: cannot cut 12 experts into 5 groups (expected groups of one size)"),
        (Routing(top_k=13), "router: cannot choose 13 experts of 12"),
        (Routing(top_k=4, groups=4), "router: cannot choose 4 experts of 3"),
        (Routing(top_k=2, groups=4, top_groups=5), "router: cannot choose 5 groups of 4"),
    ],
)
def test_what_cannot_be_chosen(routing: Routing, message: str) -> None:
    """Said when the layer is made."""
    with pytest.raises(SpecError) as caught:
        Router(HIDDEN, EXPERTS, routing)
    assert str(caught.value) == message
