"""How much of a step XLA has to compile for each block: calls of the C++ kernels, and nothing else."""

from __future__ import annotations

import jax
import pytest
from native_weights import KERNELS, REASON
from zoo_cases import CASES, CLASSES

from bombus.models.model import build_model
from bombus.models.registry import find_architecture

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)


def instructions(name: str, blocks: int) -> dict[str, int]:
    """How many calls and fusions are in the program of one token in bfloat16."""
    config = {**CASES[name].config, "model_type": name, "architectures": [CLASSES[name]["causal_lm"]]}
    architecture, head = find_architecture(config)
    spec = architecture.spec.from_hf(config, head=head).configure(num_blocks=blocks)
    model = build_model(spec, "bf16")
    cache = jax.eval_shape(lambda: model.init_cache(1, 32))
    step = jax.jit(lambda params, tokens, cache: model.apply(params, tokens, cache=cache), donate_argnums=2)
    tokens = jax.ShapeDtypeStruct((1, 1), "int32")
    text = step.lower(model.abstract_params, tokens, cache).compile().as_text()
    return {kind: text.count(f" {kind}(") for kind in ("custom-call", "fusion", "copy", "dot")}


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "mistral", "gemma"])
def test_a_block_is_calls_alone(name: str) -> None:
    """Products with all around them, the heads' norms and rotation, two writes into the cache, attention."""
    two, three = instructions(name, 2), instructions(name, 3)
    assert {kind: three[kind] - two[kind] for kind in two} == {"custom-call": 8, "fusion": 0, "copy": 0, "dot": 0}
