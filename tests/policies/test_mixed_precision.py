"""MixedPrecision: which rule decides for a parameter, what counts as a rule, how rules merge and explain themselves."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bombus.policies import Decision, MixedPrecision, Policy, as_precision, create_policy, load_preset
from bombus.policies.errors import PolicyError

QUERY = "decoder.blocks.0.self_attention.query.kernel"
QUERY_TENSOR = "model.layers.0.self_attn.q_proj.weight"
PARAMETERS = {
    QUERY: QUERY_TENSOR,
    "decoder.blocks.0.ffn.gate.kernel": "model.layers.0.mlp.gate_proj.weight",
    "decoder.blocks.1.ffn.gate.kernel": "model.layers.1.mlp.gate_proj.weight",
    "embedder.token_embedding.embedding": "model.embed_tokens.weight",
    "output_norm.scale": "model.norm.weight",
}


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


BF16 = Policy(params="bf16", compute="bf16")
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


@pytest.mark.parametrize(
    ("rules", "default", "path", "sentence"),
    [
        (
            {"*": "f32", QUERY: "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from {QUERY!r}, "
            "because an exact name beats every pattern",
        ),
        (
            {"*": "f32", "decoder.*": "f16", "re:.*kernel": {"params": "bf16"}},
            None,
            QUERY,
            f"{QUERY}: Policy(params=bf16, compute=None, output=None) from 're:.*kernel', "
            "because it comes later than '*', 'decoder.*'",
        ),
        (
            {"*.scale": "f32", "decoder.*": "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'decoder.*', because no other rule matches",
        ),
        (
            {"*.scale": "f32"},
            "bf16",
            QUERY,
            f"{QUERY}: Policy(params=bf16, compute=bf16, output=None) from the default, because no rule matches",
        ),
        (
            {"*.scale": "f32"},
            None,
            QUERY,
            f"{QUERY}: no rule matches and there is no default, so it is left as the checkpoint has it",
        ),
        (
            {"*": "f32", "attention": "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'attention', because it comes later than '*'",
        ),
        (
            {"decoder.blocks.{0..3}.*": "f16", "norm": "f32"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'decoder.blocks.{{0..3}}.*', "
            "because no other rule matches",
        ),
        # What the rule says is not what becomes of this parameter.
        (
            {},
            "int8",
            "output_norm.scale",
            "output_norm.scale: Policy(params=int8, compute=None, output=None) from the default, "
            "because no rule matches; int8 is only for weights",
        ),
        (
            {"*": {"params": {"default": "int8", "bias": "f32"}}},
            None,
            "output_norm.scale",
            "output_norm.scale: Policy(params={'default': int8, 'bias': f32}, compute=None, output=None) from '*', "
            "because no other rule matches; int8 is only for weights",
        ),
        (
            {"*": {"params": {"default": "int8", "bias": "f32"}}},
            None,
            "a.bias",
            "a.bias: Policy(params={'default': int8, 'bias': f32}, compute=None, output=None) from '*', "
            "because no other rule matches",
        ),
    ],
)
def test_explain_says_which_rule_decided_and_why(rules, default, path, sentence):
    assert MixedPrecision(rules, default).explain(path) == sentence


def test_explain_says_which_of_two_exact_names_came_later():
    sentence = MixedPrecision({"*": "f32", QUERY_TENSOR: "f32", QUERY: "f16"}).explain(QUERY, QUERY_TENSOR)
    assert sentence.endswith(f"from {QUERY!r}, because it comes later than {QUERY_TENSOR!r}")


def test_explain_knows_the_tensor_name():
    precision = MixedPrecision({"model.*": "f16"})
    assert "from 'model.*'" in precision.explain(QUERY, QUERY_TENSOR)
    assert "no rule matches" in precision.explain(QUERY)


def test_the_repr_is_a_table_with_the_default_last():
    precision = MixedPrecision({"default": "bf16", "*.kernel": {"params": "f8_e4m3fn"}, "re:.*norm.*": "f32"})
    assert repr(precision) == (
        "MixedPrecision\n"
        "  *.kernel     Policy(params=f8_e4m3fn, compute=None, output=None)\n"
        "  re:.*norm.*  Policy(params=f32, compute=f32, output=None)\n"
        "  default      Policy(params=bf16, compute=bf16, output=None)"
    )


def test_the_html_table_escapes_patterns():
    precision = MixedPrecision({"re:(?P<n>x)|<script>&": "f32"})
    text = precision._repr_html_()
    assert "<td><code>re:(?P&lt;n&gt;x)|&lt;script&gt;&amp;</code></td>" in text
    assert "<td>Policy(params=f32, compute=f32, output=None)</td>" in text
    assert "<script>" not in text
    assert text.startswith("<table><tr><th>rule</th><th>policy</th></tr><tr>")
    assert text.endswith("<tr><td><code>default</code></td><td>None</td></tr></table>")


# A small alphabet, so that random rules often match, and often several of them.
_WORDS = st.sampled_from(["a", "b", "ab"])
_PATHS = st.lists(_WORDS, min_size=1, max_size=3).map(".".join)
_GLOBS = st.lists(st.sampled_from(["a", "b", ".", "*", "?"]), min_size=1, max_size=5).map("".join)
_EXPRESSIONS = st.lists(st.sampled_from(["a", "b", r"\.", ".*", "[ab]", "(a|b)?"]), min_size=1, max_size=4).map("".join)
_PATTERNS = st.one_of(_PATHS, _GLOBS, _EXPRESSIONS.map("re:{}".format))
_RULES = st.lists(_PATTERNS, max_size=6, unique=True)


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


@given(patterns=_RULES, has_default=st.booleans(), path=_PATHS, tensor=st.none() | _PATHS)
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


FIRST = MixedPrecision({"*.kernel": "f16", QUERY: "f32", "norm": "f32"}, default="bf16")
SECOND = MixedPrecision({"norm": "bf16", "decoder.*": "f32", "*.kernel": "bf16"}, default="f16")


def test_merge_keeps_the_first_ones_rules_by_default():
    merged = FIRST.merge(SECOND)
    assert merged == FIRST.merge(SECOND, on_conflict="keep") == SECOND.merge(FIRST, on_conflict="replace")
    assert list(merged.rules) == ["decoder.*", "*.kernel", QUERY, "norm"]
    assert [str(policy.params) for policy in merged.rules.values()] == ["f32", "f16", "f32", "f32"]
    assert merged.default == FIRST.default


def test_merge_with_replace_takes_the_seconds_rules():
    merged = FIRST.merge(SECOND, on_conflict="replace")
    assert list(merged.rules) == [QUERY, "norm", "decoder.*", "*.kernel"]
    assert [str(policy.params) for policy in merged.rules.values()] == ["f32", "bf16", "f32", "bf16"]
    assert merged.default == SECOND.default


def test_merge_with_error_lists_the_patterns_with_two_policies():
    with pytest.raises(PolicyError) as caught:
        FIRST.merge(SECOND, on_conflict="error")
    remedy = 'Give on_conflict="keep" for the first, "replace" for the second'
    assert str(caught.value) == (
        "merge: 3 problems\n"
        "  - policy rule '*.kernel': is Policy(params=f16, compute=f16, output=None) in one and "
        f"Policy(params=bf16, compute=bf16, output=None) in the other. {remedy}\n"
        "  - policy rule 'norm': is Policy(params=f32, compute=f32, output=None) in one and "
        f"Policy(params=bf16, compute=bf16, output=None) in the other. {remedy}\n"
        "  - policy rule 'default': is Policy(params=bf16, compute=bf16, output=None) in one and "
        f"Policy(params=f16, compute=f16, output=None) in the other. {remedy}"
    )


def test_equal_policies_and_one_default_are_no_conflict():
    merged = MixedPrecision({"a": "f16"}).merge({"b": "f32", "a": "float16", "default": "bf16"}, on_conflict="error")
    assert list(merged.rules) == ["b", "a"]
    assert merged.default == BF16
    assert MixedPrecision({}, "bf16").merge(None, on_conflict="error").default == BF16


def test_merge_refuses_another_way_to_solve_conflicts():
    with pytest.raises(PolicyError) as caught:
        FIRST.merge(SECOND, on_conflict="first")
    assert str(caught.value) == "on_conflict: cannot be 'first' (expected keep, replace, error)"


@given(
    first=st.dictionaries(_PATTERNS, st.sampled_from(["f32", "f16"]), max_size=4),
    second=st.dictionaries(_PATTERNS, st.sampled_from(["bf16", "f16"]), max_size=4),
    defaults=st.tuples(st.sampled_from([None, "f32"]), st.sampled_from([None, "bf16"])),
    path=_PATHS,
    tensor=st.none() | _PATHS,
)
def test_a_merged_policy_decides_as_the_winner_where_it_ranks_no_lower(first, second, defaults, path, tensor):
    winner, loser = MixedPrecision(first, defaults[0]), MixedPrecision(second, defaults[1])
    merged = winner.merge(loser)
    assert set(merged.rules) == {*first, *second}

    def rank(precision):
        rule = precision.decide(path, tensor).rule
        if rule in (None, "default"):
            return 0 if rule is None else 1
        return 3 if rule in (path, tensor) else 2

    expected = winner if rank(winner) >= rank(loser) else loser
    # The winner's policy counts for a pattern that both have, also where the loser decides.
    rule = expected.decide(path, tensor).rule
    assert merged.decide(path, tensor).policy == {**loser.rules, **winner.rules}.get(
        rule, expected.decide(path, tensor).policy
    )
