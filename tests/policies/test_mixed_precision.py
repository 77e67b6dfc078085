"""MixedPrecision: which rule decides for a parameter, what counts as a rule, and how it explains itself."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bombus.policies import Decision, MixedPrecision, Policy, as_precision, create_policy
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
    ],
)
def test_everything_that_says_a_policy_is_accepted(value, expected):
    assert as_precision(value) == expected
    assert as_precision(as_precision(value)) == expected


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_json_file_holds_rules(tmp_path, kind):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    assert as_precision(kind(path)) == as_precision(RULES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "policy: is not valid JSON: "),
        ("[" * 100_000, "policy: is not valid JSON: "),
        ('["bf16"]', "policy: is not a map (expected a JSON object of pattern: policy)"),
        ('{"*": "bf61"}', "type 'bf61': is not a storage format. The closest are 'bf16'"),
    ],
)
def test_a_malformed_json_file_is_refused(tmp_path, text, message):
    path = tmp_path / "rules.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        as_precision(path)
    assert message in str(caught.value)
    if message.startswith("policy"):
        assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_policy_file_is_named(tmp_path):
    path = tmp_path / "absent.json"
    with pytest.raises(PolicyError) as caught:
        as_precision(str(path))
    assert str(caught.value).startswith(f"{path}: policy file: cannot be read: ")
    assert str(caught.value).endswith("Check the path")


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
            "policy for '*': has no field 'outputs'. The closest are 'output', 'compute'",
        ),
        (
            lambda: MixedPrecision({"*": "bf61"}),
            "type 'bf61': is not a storage format. The closest are 'bf16', 'f16'",
        ),
    ],
)
def test_malformed_rules_are_refused_when_they_are_made(make, text):
    with pytest.raises(PolicyError) as caught:
        make()
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
    ],
)
def test_explain_says_which_rule_decided_and_why(rules, default, path, sentence):
    assert MixedPrecision(rules, default).explain(path) == sentence


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
    """The rule that should decide: exact names, then patterns from the last to the first, then the default."""
    names = [path] if tensor is None else [path, tensor]
    for pattern in patterns:
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


# The tensor is outside the alphabet of exact names: two exact names of one parameter are not ordered by the design.
@given(patterns=_RULES, has_default=st.booleans(), path=_PATHS, tensor=st.sampled_from([None, "b.a.b.a", "..a"]))
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
