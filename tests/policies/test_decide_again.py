"""decide_again: what a second policy changes, and what counts where an earlier one decided otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombus.policies import Decision, MixedPrecision, Policy, apply_policy, as_policy, decide_again
from bombus.policies.errors import PolicyError

NAMES = {
    "embedder.token_embedding.embedding": "model.embed.weight",
    "decoder.blocks.0.ffn.gate.kernel": "model.layers.0.gate.weight",
    "decoder.blocks.0.ffn.output.kernel": "model.layers.0.down.weight",
    "decoder.blocks.1.ffn.gate.kernel": "model.layers.1.gate.weight",
    "decoder.blocks.1.ffn.output.kernel": "model.layers.1.down.weight",
    "output_norm.scale": "model.norm.weight",
}
EMBEDDING, GATE, DOWN, GATE_1, DOWN_1, NORM = NAMES
REMEDY = 'Give on_conflict="replace" to decide them again'


def decided(rules):
    return MixedPrecision(rules).resolve(NAMES)


def again(earlier, rules, **options):
    """Path -> rule, after a policy over an earlier one; `earlier` are rules, too."""
    found = decide_again(decided(earlier), NAMES, MixedPrecision(rules), **options)
    return {path: decision.rule for path, decision in found.items()}


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "error"])
def test_what_nothing_decided_is_decided_by_the_new_policy(on_conflict):
    assert again({}, {"*.kernel": "int8"}, on_conflict=on_conflict) == {
        path: "*.kernel" if path.endswith("kernel") else None for path in NAMES
    }
    assert again({"norm": "f32"}, {"*.gate.*": "int8"}, on_conflict=on_conflict) == {
        **dict.fromkeys(NAMES),
        **dict.fromkeys((GATE, GATE_1), "*.gate.*"),
        NORM: "norm",
    }


def test_keep_leaves_what_an_earlier_rule_decided():
    found = again({"*.gate.*": "int8"}, {"default": "bf16", "decoder.blocks.0.*": "f16"})
    assert found == {
        **dict.fromkeys((EMBEDDING, DOWN_1, NORM), "default"),
        **dict.fromkeys((GATE, GATE_1), "*.gate.*"),
        DOWN: "decoder.blocks.0.*",
    }
    assert found == again({"*.gate.*": "int8"}, {"default": "bf16", "decoder.blocks.0.*": "f16"}, on_conflict="keep")


def test_an_earlier_default_decided_too():
    assert again({"default": "bf16", "norm": "f32"}, {"*.ffn.*": "int8"}, on_conflict="replace") == {
        **dict.fromkeys((GATE, GATE_1, DOWN, DOWN_1), "*.ffn.*"),
        EMBEDDING: "default",
        NORM: "norm",
    }
    with pytest.raises(PolicyError) as caught:
        again({"default": "bf16"}, {"*.ffn.*": "int8"})
    assert str(caught.value) == (
        "policy: on_conflict 'keep': leaves nothing to change: an earlier policy decided every parameter that this one "
        f"decides, by rule 'default'. {REMEDY}"
    )


def test_keep_that_changes_nothing_names_the_earlier_rules():
    with pytest.raises(PolicyError) as caught:
        again({"*.gate.*": "f16", "*.output.*": "f32", "norm": "f32"}, {"*.ffn.*": "int8"})
    assert str(caught.value).endswith(f"by rules '*.gate.*', '*.output.*'. {REMEDY}")


def test_the_same_policy_again_is_no_conflict():
    earlier = {"*.gate.*": "int8"}
    assert again(earlier, {"*.ffn.gate.*": "int8"}) == again(earlier, {}, on_conflict="keep")
    assert again(earlier, {"*.ffn.gate.*": "int8"}, on_conflict="error")[GATE] == "*.ffn.gate.*"
    assert again(earlier, {"*.ffn.gate.*": "int8"}, on_conflict="replace")[GATE] == "*.ffn.gate.*"


def test_error_names_the_parameters_and_both_rules():
    with pytest.raises(PolicyError) as caught:
        again({"default": "bf16", "*.gate.*": "f16", "norm": "f32"}, {"*": "int8", "norm": "f32"}, on_conflict="error")
    remedy = 'Give on_conflict="keep" for the earlier one, "replace" for this one'
    int8 = "Policy(params=int8, compute=None, output=None)"
    assert str(caught.value) == (
        "policy: 2 problems\n"
        f"  - policy rule '*': gives {int8} to {EMBEDDING}, {DOWN}, {DOWN_1}, to which rule 'default' of an earlier "
        f"policy gives Policy(params=bf16, compute=bf16, output=None). {remedy}\n"
        f"  - policy rule '*': gives {int8} to {GATE}, {GATE_1}, to which rule '*.gate.*' of an earlier policy gives "
        f"Policy(params=f16, compute=f16, output=None). {remedy}"
    )


def test_only_and_exclude_limit_the_conflicts_too():
    earlier = {"*.gate.*": "f16"}
    found = again(earlier, {"default": "int8"}, only=["feed_forward", "norm"], exclude="*.gate.*", on_conflict="error")
    assert found == {
        **dict.fromkeys((DOWN, DOWN_1, NORM), "default"),
        **dict.fromkeys((GATE, GATE_1), "*.gate.*"),
        EMBEDDING: None,
    }
    with pytest.raises(PolicyError, match="leaves nothing to change"):
        again(earlier, {"default": "int8"}, only="model.layers.*.gate.weight")


def test_every_pattern_and_rule_of_no_use_is_listed():
    with pytest.raises(PolicyError) as caught:
        again({}, {"norm": "int8", "head": "bf16"}, only=["*.ffn.*", "default"], exclude="output_norms.scale")
    first, second, third, fourth = map(str, caught.value.problems)
    assert first.startswith("policy rule 'default': matches no parameter")
    assert second == "policy rule 'output_norms.scale': matches no parameter. The closest are 'output_norm.scale'"
    assert third.startswith("policy rule 'head': matches no parameter. The groups of this model are ")
    assert fourth.startswith("policy rule 'norm': stores nothing as int8, which is for weights")


def test_another_way_to_solve_conflicts_is_refused():
    with pytest.raises(PolicyError) as caught:
        again({}, {"default": "bf16"}, on_conflict="merge")
    assert str(caught.value) == "on_conflict: cannot be 'merge' (expected keep, replace, error)"


def test_the_parts_of_a_weight_that_is_kept_are_no_change():
    """They may be undecided, or not even there: a rule for a layer decides them beside the weight."""
    scales = {path.replace(".kernel", ".scale_inv"): name for path, name in NAMES.items() if path.endswith(".kernel")}
    names, policy = {**NAMES, **scales}, MixedPrecision({"*.ffn.*": "int8"})
    kernels = MixedPrecision({"*.kernel": "bf16"})
    for earlier in (kernels.resolve(NAMES), {**dict.fromkeys(names, Decision()), **kernels.resolve(NAMES)}):
        with pytest.raises(PolicyError, match="leaves nothing to change"):
            decide_again(earlier, names, policy)


class FakeModel:
    """What apply_policy needs of a model. Rules can also name the scales that it has not."""

    def __init__(self, decisions):
        self.decisions = decisions

    def tensor_names(self):
        return {**NAMES, GATE.replace("kernel", "scale_inv"): None}

    def with_decisions(self, decisions):
        return FakeModel(decisions)


def test_apply_policy_decides_for_the_parameters_that_a_model_has():
    model = FakeModel(decided({"norm": "f32"}))
    changed = apply_policy(model, {"*": "bf16", "*.scale_inv": "f16"})
    assert list(changed.decisions) == list(NAMES)
    assert {path: decision.rule for path, decision in changed.decisions.items()} == {
        path: "norm" if path == NORM else "*" for path in NAMES
    }
    assert changed.decisions[GATE] == Decision(policy=as_policy("bf16"), rule="*")
    replaced = apply_policy(changed, "f16", only="norm", on_conflict="replace")
    assert {path for path, decision in replaced.decisions.items() if decision != changed.decisions[path]} == {NORM}
    # What was given is not changed.
    assert {path for path, decision in model.decisions.items() if decision.rule} == {NORM}


_RULES = st.dictionaries(
    st.sampled_from(["*", "feed_forward", "*.gate.*", "decoder.blocks.{0..1}.*", GATE, "norm", "default"]),
    st.sampled_from(["bf16", "f16", {"params": "int8", "compute": "bf16"}, None]),
)


@given(earlier=_RULES, rules=_RULES, on_conflict=st.sampled_from(["keep", "replace", "error"]))
def test_every_parameter_follows_the_one_that_counts(earlier, rules, on_conflict):
    try:
        old, new = decided(earlier), decided(rules)
    except PolicyError:
        return
    both = [path for path in NAMES if old[path].rule and new[path].rule]
    conflicts = [path for path in both if old[path].policy != new[path].policy]
    free = [path for path in NAMES if new[path].rule and not old[path].rule]
    expected = {
        path: new[path] if path in free or (path in both and on_conflict != "keep") else old[path] for path in NAMES
    }
    # A rule that leaves a parameter as it is changes nothing there.
    left = [path for path in free if new[path].policy != Policy()]
    refused = bool(conflicts) and (on_conflict == "error" or (on_conflict == "keep" and not left))
    try:
        found = decide_again(old, NAMES, MixedPrecision(rules), on_conflict=on_conflict)
    except PolicyError:
        assert refused
    else:
        assert not refused
        assert found == expected
