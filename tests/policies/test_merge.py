"""MixedPrecision.merge: two policies as one, and what is done where they say different things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_rules import BF16, PATHS, PATTERNS, QUERY

from bombus.policies import MixedPrecision
from bombus.policies.errors import PolicyError

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
    first=st.dictionaries(PATTERNS, st.sampled_from(["f32", "f16"]), max_size=4),
    second=st.dictionaries(PATTERNS, st.sampled_from(["bf16", "f16"]), max_size=4),
    defaults=st.tuples(st.sampled_from([None, "f32"]), st.sampled_from([None, "bf16"])),
    path=PATHS,
    tensor=st.none() | PATHS,
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
