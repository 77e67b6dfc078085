"""Rules that are malformed or reach nothing: all of them are listed, with what was meant."""

from __future__ import annotations

import pytest
from policy_rules import PARAMETERS, QUERY

from bombus.policies import MixedPrecision, as_precision
from bombus.policies.errors import PolicyError


def test_every_rule_that_matches_nothing_is_listed_with_the_closest_names():
    precision = MixedPrecision(
        {
            "decoder.blocks.0.ffn.gate.kernal": "f16",
            "*.kernel": "f16",
            "output_norms.scale": "f32",
            "re:zzz": "f32",
        }
    )
    with pytest.raises(PolicyError) as caught:
        precision.resolve(PARAMETERS)
    first, second, third = map(str, caught.value.problems)
    assert first.startswith(
        "policy rule 'decoder.blocks.0.ffn.gate.kernal': matches no parameter. "
        "The closest are 'decoder.blocks.0.ffn.gate.kernel', 'decoder.blocks.1.ffn.gate.kernel'"
    )
    assert second.startswith(
        "policy rule 'output_norms.scale': matches no parameter. The closest are 'output_norm.scale'"
    )
    assert third.startswith("policy rule 're:zzz': matches no parameter. Known: " + QUERY)
    assert str(caught.value).startswith("policy: 3 problems\n  - policy rule ")


def test_a_rule_whose_parameters_others_took_is_used_all_the_same():
    # It says something true about a parameter that exists; only a rule about nothing is a mistake.
    rules = {"output_norm.*": "f16", "*": "f32"}
    assert {decision.rule for decision in MixedPrecision(rules).resolve(PARAMETERS).values()} == {"*"}


def test_a_group_that_the_model_has_not_is_listed_with_those_it_has():
    with pytest.raises(PolicyError) as caught:
        MixedPrecision({"experts": "f16", "feedforward": "f16"}).resolve(PARAMETERS)
    first, second = map(str, caught.value.problems)
    assert first == (
        "policy rule 'experts': matches no parameter. "
        "The groups of this model are norm, embedding, attention, feed_forward"
    )
    assert second == "policy rule 'feedforward': matches no parameter. The closest are 'feed_forward'"
    (problem,) = MixedPrecision({"head": "f16"}).problems({"classifier.kernel": None})
    assert str(problem) == "policy rule 'head': matches no parameter. The groups of this model are none"


def test_low_precision_that_reaches_no_weight_is_listed():
    many = {f"decoder.blocks.{number}.output_norm.scale": None for number in range(5)}
    precision = MixedPrecision({"norm": "int4(group=64)", "*.bias": "int8", "*": "int8"})
    problems = precision.problems({**PARAMETERS, **many, f"{QUERY.removesuffix('kernel')}bias": None})
    assert list(map(str, problems)) == [
        "policy rule 'norm': stores nothing as int4(group=64), which is for weights "
        "(expected a parameter that ends in kernel or embedding, found output_norm.scale, "
        "decoder.blocks.0.output_norm.scale, decoder.blocks.1.output_norm.scale and 3 more). "
        "Give it f32, bf16 or f16, or a pattern that matches weights",
        "policy rule '*.bias': stores nothing as int8, which is for weights (expected a parameter that ends in kernel "
        "or embedding, found decoder.blocks.0.self_attention.query.bias). "
        "Give it f32, bf16 or f16, or a pattern that matches weights",
    ]
    with pytest.raises(PolicyError) as caught:
        precision.resolve(PARAMETERS)
    subjects = [problem.subject for problem in caught.value.problems]
    assert subjects == ["policy rule '*.bias'", "policy rule 'norm'"]


@pytest.mark.parametrize(
    ("rules", "listed"),
    [
        # It says something true of a weight, which a later rule took.
        ({"attention": "int8", "*": "bf16"}, []),
        # A default is for the parameters that no rule matches.
        ({"{attention,feed_forward,embedding}": "bf16", "default": "int8"}, ["default"]),
        ({"{attention,feed_forward}": "bf16", "default": "int8"}, []),
        ({"*": "bf16", "default": "int8"}, []),
        # A map says for itself what it is for; types that arithmetic exists for are for everything.
        ({"norm": {"params": {"kernel": "int8", "default": None}}}, []),
        ({"norm": {"params": "f32", "compute": "f32"}}, []),
        ({"output_norm.scale": {"params": "f8_e4m3fn"}}, ["output_norm.scale"]),
    ],
)
def test_low_precision_must_reach_a_weight_that_it_matches(rules, listed):
    problems = MixedPrecision(rules).problems(PARAMETERS)
    assert [problem.subject for problem in problems] == [f"policy rule {rule!r}" for rule in listed]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: MixedPrecision({"default": "f32"}, default="bf16"),
            'MixedPrecision: has both a "default" rule and `default=`',
        ),
        (
            lambda: MixedPrecision({"re:(": "f32"}),
            "policy rule 're:(': is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            lambda: MixedPrecision({"*": {"compute": "bf16", "outputs": "f32"}}),
            "policy rule '*', policy: has no field 'outputs'. The closest are 'output', 'compute'",
        ),
        (
            lambda: MixedPrecision({"*": "bf61"}),
            "policy rule '*', type 'bf61': is not a storage format. The closest are 'bf16', 'f16', 'bfp8'",
        ),
        (
            lambda: MixedPrecision({"a.{0..}": "f32", "*": {"compute": "int8", "output": "f32"}}, default="f61"),
            "3 problems\n"
            "  - policy rule 'a.{0..}': has {0..}, in which '0..' is neither a word nor a range of numbers. "
            "Write alternatives with commas and ranges with two dots, like {0,4..7}\n"
            "  - policy rule '*', Policy.compute: cannot be int8: nothing is computed in a storage format "
            "(expected f32, bf16 or f16). Give int8 as `params` and the type to dequantize to as `compute`\n"
            "  - policy rule 'default', type 'f61': is not a storage format. The closest are 'f16', 'bf16'",
        ),
    ],
)
def test_malformed_rules_are_refused_when_they_are_made(make, text):
    with pytest.raises(PolicyError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("performence", "policy: 'performence' is not a preset. The closest are 'performance'"),
        ("bf61", "type 'bf61': is not a storage format. The closest are 'bf16', 'f16', 'bfp8'"),
        ("int4(groups=64)", "format 'int4': has no option 'groups'. Its options are group, zero_points, scale"),
    ],
)
def test_a_text_that_says_no_policy_is_refused(value, text):
    with pytest.raises(PolicyError) as caught:
        as_precision(value)
    assert str(caught.value) == text


def test_a_rule_that_is_not_a_text_is_refused():
    with pytest.raises(PolicyError, match="policy rule 1"):
        MixedPrecision({1: "bf16"})
