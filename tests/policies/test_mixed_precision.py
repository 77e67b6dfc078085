"""MixedPrecision: which rule decides for a parameter, and what counts as a policy."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from policy_rules import BF16, PARAMETERS, PATHS, PATTERNS, QUERY, QUERY_TENSOR

from bombus.policies import Decision, MixedPrecision, Policy, as_precision, create_policy, load_preset


def rule_of(rules, path, tensor=None, default=None):
    return MixedPrecision(rules, default).decide(path, tensor).rule


def test_an_exact_name_beats_patterns_before_and_after_it():
    rules = {"*": "f32", QUERY: "f16", "decoder.*": "bf16"}
    assert rule_of(rules, QUERY) == QUERY
    assert MixedPrecision(rules).decide(QUERY).policy == Policy(params="f16", compute="f16")
    assert rule_of(rules, "decoder.blocks.0.ffn.gate.kernel") == "decoder.*"


def test_a_later_pattern_beats_an_earlier_one_however_specific():
    assert rule_of({"decoder.blocks.0.*": "f16", "*": "f32"}, QUERY) == "*"
    assert rule_of({"*": "f32", "decoder.blocks.0.*": "f16"}, QUERY) == "decoder.blocks.0.*"
    assert rule_of({"re:.*": "f32", "*.kernel": "f16"}, QUERY) == "*.kernel"


@pytest.mark.parametrize("rules", [{"default": "f32", "*.kernel": "f16"}, {"*.kernel": "f16", "default": "f32"}])
def test_the_default_comes_last_wherever_it_stands(rules):
    assert rule_of(rules, QUERY) == "*.kernel"
    decision = MixedPrecision(rules).decide("output_norm.scale")
    assert decision == Decision(policy=Policy(params="f32", compute="f32"), rule="default")


def test_without_a_rule_and_a_default_nothing_is_decided():
    assert MixedPrecision({"*.kernel": "f16"}).decide("output_norm.scale") == Decision(policy=None, rule=None)


@pytest.mark.parametrize(
    ("pattern", "path", "matched"),
    [
        ("re:decoder", QUERY, False),
        (r"re:decoder.*", QUERY, True),
        (r"re:decoder\.blocks\.[01]\..*kernel", QUERY, True),
        (r"re:decoder\.blocks\.[12]\..*kernel", QUERY, False),
        # One alternative that matches a part is not a full match.
        ("re:a|ab", "ab", True),
        ("re:a|ab", "abc", False),
        ("*", QUERY, True),
        ("decoder.*.kernel", QUERY, True),
        ("*attention*", QUERY, True),
        ("decoder.blocks.?.self_attention.query.kernel", QUERY, True),
        ("decoder.blocks.?.self_attention.query.kernel", QUERY.replace(".0.", ".10."), False),
        ("decoder.blocks.[02].*", QUERY, True),
        ("decoder.blocks.[!0]*", QUERY, False),
        ("DECODER.*", QUERY, False),
        # A dot of a glob or an exact name is a dot, and no name stands for what is below it.
        ("decoder", QUERY, False),
        ("outputXnorm*", "output_norm.scale", False),
        ("output.norm.scale", "output_norm.scale", False),
    ],
)
def test_globs_cross_dots_and_regular_expressions_match_in_full(pattern, path, matched):
    assert rule_of({pattern: "f16"}, path) == (pattern if matched else None)


@pytest.mark.parametrize("pattern", [QUERY_TENSOR, "model.layers.*.weight", r"re:model\.layers\.\d+\..*"])
def test_a_rule_may_name_the_tensor_of_the_checkpoint(pattern):
    assert rule_of({pattern: "f16"}, QUERY, QUERY_TENSOR) == pattern
    assert rule_of({pattern: "f16"}, QUERY) is None


def test_an_exact_tensor_name_beats_a_pattern_for_our_path():
    assert rule_of({QUERY_TENSOR: "f16", "decoder.*": "f32"}, QUERY, QUERY_TENSOR) == QUERY_TENSOR


def test_resolve_decides_for_every_parameter():
    precision = MixedPrecision({"*.kernel": "f16", "model.embed_tokens.weight": "f32"}, default="bf16")
    assert {path: decision.rule for path, decision in precision.resolve(PARAMETERS).items()} == {
        QUERY: "*.kernel",
        "decoder.blocks.0.ffn.gate.kernel": "*.kernel",
        "decoder.blocks.1.ffn.gate.kernel": "*.kernel",
        "embedder.token_embedding.embedding": "model.embed_tokens.weight",
        "output_norm.scale": "default",
    }


def test_a_group_is_a_pattern_that_later_ones_and_exact_names_beat():
    assert rule_of({"attention": "f16", "*.kernel": "f32"}, QUERY) == "*.kernel"
    assert rule_of({"*.kernel": "f32", "attention": "f16"}, QUERY) == "attention"
    assert rule_of({QUERY: "f32", "attention": "f16"}, QUERY) == QUERY
    assert rule_of({QUERY_TENSOR: "f32", "attention": "f16"}, QUERY, QUERY_TENSOR) == QUERY_TENSOR


def test_a_pattern_with_braces_is_no_exact_name():
    rules = {"decoder.blocks.{0}.self_attention.query.kernel": "f16", "*": "f32"}
    assert rule_of(rules, QUERY) == "*"
    assert rule_of(dict(reversed(rules.items())), QUERY) == next(iter(rules))


@pytest.mark.parametrize("names", [(QUERY, QUERY_TENSOR), (QUERY_TENSOR, QUERY)])
def test_the_later_of_two_exact_names_of_one_parameter_counts(names):
    assert rule_of(dict.fromkeys(names, "f16"), QUERY, QUERY_TENSOR) == names[1]


RULES = {"default": "bf16", "*.kernel": {"params": "f8_e4m3fn", "compute": "bf16"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, MixedPrecision({})),
        ("bf16", MixedPrecision({}, BF16)),
        ("bfloat16", MixedPrecision({}, BF16)),
        # Nothing is computed in FP8: the layer takes the type of its input.
        ("f8_e4m3fn", MixedPrecision({}, Policy(params="f8_e4m3fn"))),
        (create_policy(output="f32"), MixedPrecision({}, Policy(output="f32"))),
        (RULES, MixedPrecision({"*.kernel": Policy(params="f8_e4m3fn", compute="bf16")}, BF16)),
        ({"*.kernel": None}, MixedPrecision({"*.kernel": Policy()})),
        ({"*.kernel": Policy(params="f16")}, MixedPrecision({"*.kernel": Policy(params="f16")})),
        ({"bombus_policy": 1, "rules": RULES}, MixedPrecision(RULES)),
        ("int4(group=64, zero_points)", MixedPrecision({}, Policy(params="int4(zero_points, group=64)"))),
        ("accuracy", load_preset("accuracy")[0]),
    ],
)
def test_everything_that_says_a_policy_is_accepted(value, expected):
    assert as_precision(value) == expected
    assert as_precision(as_precision(value)) == expected


def glob_matches(pattern, name):
    """A glob of `*` and `?`, by recursion on its first character: nothing that the implementation uses."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(glob_matches(pattern[1:], name[start:]) for start in range(len(name) + 1))
    return bool(name) and pattern[0] in (name[0], "?") and glob_matches(pattern[1:], name[1:])


def naive_rule(patterns, default, path, tensor):
    """The rule that should decide: the last exact name, else the last pattern, else the default."""
    names = [path] if tensor is None else [path, tensor]
    for pattern in reversed(patterns):
        if not pattern.startswith("re:") and "*" not in pattern and "?" not in pattern and pattern in names:
            return pattern
    for pattern in reversed(patterns):
        for name in names:
            if pattern.startswith("re:"):
                found = re.match(f"(?:{pattern[3:]})\\Z", name)
            else:
                found = glob_matches(pattern, name)
            if found:
                return pattern
    return default


@given(
    patterns=st.lists(PATTERNS, max_size=6, unique=True),
    has_default=st.booleans(),
    path=PATHS,
    tensor=st.none() | PATHS,
)
@example(patterns=["a.b", "*"], has_default=True, path="a.b", tensor=None)
@example(patterns=["re:.*", "*"], has_default=True, path="a.b", tensor=None)
def test_decide_and_explain_agree_with_a_naive_model(patterns, has_default, path, tensor):
    # A distinct policy for every rule would need more types than there are; the rule's name tells them apart.
    types = ["f32", "bf16", "f16"]
    rules = {pattern: types[index % 3] for index, pattern in enumerate(patterns)}
    precision = MixedPrecision(rules, "f32" if has_default else None)
    expected = naive_rule(patterns, "default" if has_default else None, path, tensor)
    decision = precision.decide(path, tensor)
    assert decision.rule == expected
    if expected is None:
        assert decision.policy is None
        assert "no rule matches and there is no default" in precision.explain(path, tensor)
    elif expected == "default":
        assert decision.policy == Policy(params="f32", compute="f32")
        assert "from the default" in precision.explain(path, tensor)
    else:
        assert decision.policy == Policy(params=rules[expected], compute=rules[expected])
        assert f" from {expected!r}, because" in precision.explain(path, tensor)
