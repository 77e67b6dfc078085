"""apply_policy and the one resolver: what init stores, what apply computes and what it returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import bombus
from bombus.models.llama import LlamaSpec
from bombus.models.model import flat
from bombus.policies import Decision
from bombus.policies.errors import PolicyError

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
F16 = np.dtype(np.float16)
F32 = np.dtype(np.float32)
# One block, sizes that make one partial tile in each direction.
SPEC = LlamaSpec(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_blocks=1, num_heads=2, num_kv_heads=1, max_positions=32
)
KERNELS = {
    *(f"decoder.blocks.0.self_attention.{name}.kernel" for name in ("query", "key", "value", "output")),
    *(f"decoder.blocks.0.ffn.{name}.kernel" for name in ("gate", "intermediate", "output")),
    "language_modeling_head.output.kernel",
}
FFN = {path for path in KERNELS if ".ffn." in path}
NORMS = {
    "decoder.blocks.0.self_attention_norm.scale",
    "decoder.blocks.0.output_norm.scale",
    "output_norm.scale",
}
EMBEDDING = "embedder.token_embedding.embedding"
TOKENS = jnp.asarray([[1, 5, 9, 30]], jnp.int32)


def stored(policy):
    """Path -> the type that `init` really stores, without computing a value."""
    params = jax.eval_shape(bombus.build_model(SPEC, policy).init, jax.random.key(0))
    return {path: np.dtype(leaf.dtype) for path, leaf in flat(params).items()}


@pytest.fixture(scope="module")
def params():
    return bombus.build_model(SPEC).init(jax.random.key(0))


def test_without_a_policy_everything_is_float32():
    assert stored(None) == dict.fromkeys({*KERNELS, *NORMS, EMBEDDING}, F32)


def test_init_stores_each_parameter_as_the_map_says():
    policy = bombus.create_policy(params={"kernel": "f16", "scale": None, "default": "bf16"}, compute="f32")
    assert stored(policy) == dict.fromkeys(KERNELS, F16) | dict.fromkeys(NORMS, F32) | {EMBEDDING: BF16}


def test_init_stores_by_rules_over_our_paths_and_their_names():
    head = "language_modeling_head.output.kernel"
    query = "decoder.blocks.0.self_attention.query.kernel"
    types = stored({"default": "bf16", "lm_head.weight": "f32", "*.self_attention.*": "f16", query: "f32"})
    expected = dict.fromkeys({*KERNELS, *NORMS, EMBEDDING}, BF16)
    expected |= {path: F16 for path in KERNELS if ".self_attention." in path}
    assert types == expected | {head: F32, query: F32}


def test_init_quantizes_a_kernel_and_gives_it_scales(params):
    gate, scale_inv = "decoder.blocks.0.ffn.gate.kernel", "decoder.blocks.0.ffn.gate.scale_inv"
    model = bombus.build_model(SPEC, {gate: {"params": "f8_e4m3fn", "compute": "bf16"}})
    values = flat(model.init(jax.random.key(0)))
    assert {path: value.dtype for path, value in values.items()} == (
        dict.fromkeys({*KERNELS, *NORMS, EMBEDDING, scale_inv}, F32) | {gate: F8}
    )
    assert values[scale_inv].shape == (1, 1)
    # Codes times the scale are the float32 values that the same key makes, to e4m3's four significant bits.
    codes, want = np.asarray(values[gate]).astype(np.float32), np.asarray(flat(params)[gate])
    assert np.abs(codes).max() == 448
    # Half a step is 1/16 of a value, or of the smallest normal number, 2**-6 of a code.
    size = np.maximum(np.abs(want), np.abs(want).max() / 448 * 2**-6)
    assert (np.abs(codes * np.asarray(values[scale_inv]) - want) <= size / 16 * 1.001).all()


def test_a_map_stores_every_kernel_in_tiles():
    types = stored(bombus.create_policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}, compute="bf16"))
    scales = {path.replace(".kernel", ".scale_inv") for path in KERNELS}
    assert types == dict.fromkeys(KERNELS, F8) | dict.fromkeys(scales, F32) | dict.fromkeys({*NORMS, EMBEDDING}, BF16)


def test_one_low_precision_format_stores_the_weights_and_leaves_the_norms():
    scales = {path.rpartition(".")[0] + ".scale_inv" for path in {*KERNELS, EMBEDDING}}
    expected = dict.fromkeys({*KERNELS, EMBEDDING}, F8) | dict.fromkeys({*scales, *NORMS}, F32)
    assert stored("f8_e4m3fn") == expected


def test_groups_are_what_a_model_has():
    types = stored({"attention": "f16", "feed_forward": "bf16", "norm": "bf16", "{embedding,head}": "f16"})
    assert {path for path, dtype in types.items() if dtype == F16} == (
        {path for path in KERNELS if ".ffn." not in path} | {EMBEDDING}
    )
    assert {path for path, dtype in types.items() if dtype == BF16} == FFN | NORMS
    with pytest.raises(PolicyError) as caught:
        bombus.build_model(SPEC, {"experts": "int8", "norm": "int8"})
    assert [problem.subject for problem in caught.value.problems] == ["policy rule 'experts'", "policy rule 'norm'"]


def test_build_model_refuses_a_rule_that_matches_nothing():
    with pytest.raises(PolicyError) as caught:
        bombus.build_model(SPEC, {"decoder.blocks.1.*": "bf16", "*.kernel": "bf16"})
    (problem,) = caught.value.problems
    assert str(problem).startswith("policy rule 'decoder.blocks.1.*': matches no parameter. The closest are ")


def test_a_compute_policy_changes_the_computed_type_and_leaves_the_parameters(params):
    model = bombus.build_model(SPEC)
    low = bombus.apply_policy(model, bombus.create_policy(compute="bf16"))
    assert low.stored == model.stored
    exact, rounded = jax.jit(model.apply)(params, TOKENS), jax.jit(low.apply)(params, TOKENS)
    # The stream follows what the embedding is computed in; logits stay float32.
    assert (exact.hidden_state.dtype, rounded.hidden_state.dtype) == (F32, BF16)
    assert (exact.logits.dtype, rounded.logits.dtype) == (F32, F32)
    error = np.abs(np.asarray(rounded.logits) - np.asarray(exact.logits)).max()
    # bfloat16 has eight significant bits: some error, and not a wrong result.
    assert 0 < error < 0.05 * np.abs(np.asarray(exact.logits)).max()


def test_output_is_what_the_layer_returns(params):
    model = bombus.build_model(SPEC)
    head = bombus.apply_policy(model, bombus.create_policy(output="bf16"), only="language_modeling_head.*")
    exact, rounded = jax.jit(model.apply)(params, TOKENS), jax.jit(head.apply)(params, TOKENS)
    assert (rounded.logits.dtype, rounded.hidden_state.dtype) == (BF16, F32)
    # Only the last rounding differs, so this is exact.
    expected = np.asarray(exact.logits).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(rounded.logits), expected)


def test_init_and_apply_take_their_types_from_one_resolver(params):
    """A rule about one kernel changes what is stored and computed of that kernel, and of no other."""
    gate = "decoder.blocks.0.ffn.gate.kernel"
    model = bombus.build_model(SPEC, {gate: {"params": "f16", "compute": "bf16"}})
    types = {path: np.dtype(leaf.dtype) for path, leaf in flat(model.abstract_params).items()}
    assert types == dict.fromkeys({*KERNELS, *NORMS, EMBEDDING}, F32) | {gate: F16}
    assert model.decisions[gate].rule == gate
    assert {path for path, decision in model.decisions.items() if decision.rule} == {gate}
    # What apply computes: the module's own layers, asked for their types.
    module = model.module(params)
    ffn = module.decoder.blocks[0].ffn
    assert ffn.gate.compute_type("kernel", F32) == BF16
    assert ffn.intermediate.compute_type("kernel", F32) == F32


def rules(model):
    return {path: decision.rule for path, decision in model.decisions.items()}


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, {*KERNELS, *NORMS, EMBEDDING}),
        ({"only": "*.ffn.*"}, FFN),
        ({"only": ["*.ffn.*", "model.norm.weight"]}, {*FFN, "output_norm.scale"}),
        ({"exclude": "*.kernel"}, {*NORMS, EMBEDDING}),
        ({"only": "*.ffn.*", "exclude": ["*.gate.*", r"re:.*\.ffn\.output\..*"]}, {p for p in FFN if "interm" in p}),
        ({"only": EMBEDDING, "exclude": "*"}, set()),
    ],
)
def test_only_and_exclude_limit_what_a_policy_is_applied_to(options, chosen):
    changed = bombus.apply_policy(bombus.build_model(SPEC), "bf16", **options)
    assert {path for path, rule in rules(changed).items() if rule == "default"} == chosen
    assert {rule for path, rule in rules(changed).items() if path not in chosen} <= {None}


def test_a_policy_is_applied_on_top_of_the_one_before():
    model = bombus.build_model(SPEC, {"*.kernel": "bf16", "default": "f32"})
    changed = bombus.apply_policy(model, {"*.ffn.*": "f16"}, on_conflict="replace")
    expected = {path: "*.kernel" if path in KERNELS else "default" for path in {*KERNELS, *NORMS, EMBEDDING}}
    assert rules(model) == expected
    assert rules(changed) == expected | dict.fromkeys(FFN, "*.ffn.*")
    assert changed.decisions["output_norm.scale"] == Decision(
        policy=bombus.Policy(params="f32", compute="f32"), rule="default"
    )


def test_the_policy_before_counts_unless_another_way_is_given():
    model = bombus.build_model(SPEC, {"*.ffn.*": "bf16"})
    kept = bombus.apply_policy(model, "f16")
    every = {*KERNELS, *NORMS, EMBEDDING}
    assert rules(kept) == dict.fromkeys(every, "default") | dict.fromkeys(FFN, "*.ffn.*")
    assert rules(bombus.apply_policy(model, "f16", on_conflict="replace")) == dict.fromkeys(every, "default")
    with pytest.raises(PolicyError, match=r"policy rule 'default': gives .* of an earlier policy gives"):
        bombus.apply_policy(model, "f16", on_conflict="error")
    with pytest.raises(
        PolicyError, match=r"leaves nothing to change: .* by rules? '.*'\. Give on_conflict=\"replace\""
    ):
        bombus.apply_policy(kept, {"attention": "f32"})


def test_patterns_that_match_nothing_are_all_listed():
    model = bombus.build_model(SPEC)
    with pytest.raises(PolicyError) as caught:
        bombus.apply_policy(model, "bf16", only=["*.ffn.*", "output_norm.scal"], exclude="*.kernels")
    text = str(caught.value)
    assert text.startswith("policy: 2 problems\n")
    assert "'output_norm.scal': matches no parameter. The closest are 'output_norm.scale'" in text
    assert "'*.kernels': matches no parameter" in text
    assert "'*.ffn.*'" not in text


def test_a_rule_that_matches_nothing_is_refused_here_too():
    with pytest.raises(PolicyError) as caught:
        bombus.apply_policy(bombus.build_model(SPEC), {"lm_heat.weight": "bf16"})
    assert "policy rule 'lm_heat.weight': matches no parameter. The closest are 'lm_head.weight'" in str(caught.value)
