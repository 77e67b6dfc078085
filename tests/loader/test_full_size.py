"""Released models at their full size: their specs, their parameters by count, and their plans, without a weight."""

from __future__ import annotations

import gc
import math

import jax
import pytest
from full_size import FULL_SIZE

from bombus.loader.plan import make_plan
from bombus.models import build_model, find_architecture
from bombus.models.model import flat
from bombus.policies import as_precision


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_plan_of_every_tensor(name: str) -> None:
    """Every parameter is read, every tensor used, and they are as many as was published. benchmarks/ has the time."""
    case = FULL_SIZE[name]
    architecture, head = find_architecture(case.config)
    spec = architecture.spec.from_hf(case.config, head=head)
    headers = case.headers()
    plan = make_plan(spec, headers, as_precision(None), preserve_source_types=True)
    assert sum(entry.size for entry in plan.entries) == case.parameters
    assert {entry.action for entry in plan.entries} == {"keep"}
    read = {tensor for entry in plan.entries for tensor in entry.source.names}
    assert read.isdisjoint(plan.unused)
    assert read.union(plan.unused) == set(headers)
    further = f"model.layers.{spec.num_blocks}."
    assert all(tensor.startswith(further) for tensor in plan.unused)
    stored = sum(math.prod(headers[tensor].shape) * headers[tensor].dtype.itemsize for tensor in read)
    assert sum(entry.nbytes for entry in plan.entries) == stored


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_model_is_made_of_shapes_alone(name: str) -> None:
    """Its step is traced under eval_shape: logits and cache of the right shapes, and no array."""
    case = FULL_SIZE[name]
    architecture, head = find_architecture(case.config)
    spec = architecture.spec.from_hf(case.config, head=head).configure(num_blocks=4)
    gc.collect()  # what other tests have left
    before = len(jax.live_arrays())
    model = build_model(spec, "bf16")
    cache = jax.eval_shape(lambda: model.init_cache(2, 32))
    tokens = jax.ShapeDtypeStruct((2, 1), "int32")
    output = jax.eval_shape(
        lambda params, tokens, cache: model.apply(params, tokens, cache=cache), model.abstract_params, tokens, cache
    )
    assert output.logits.shape == (2, 1, case.config["vocab_size"])
    assert jax.tree.map(lambda leaf: leaf.shape, output.cache) == jax.tree.map(lambda leaf: leaf.shape, cache)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in flat(model.abstract_params).values())
    assert len(jax.live_arrays()) == before
