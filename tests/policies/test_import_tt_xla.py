"""from_tt_xla: the same types for the same weights as in tt-xla, or an error."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bombus.policies import MixedPrecision, Policy, as_policy, from_tt_xla, resolve_format
from bombus.policies.errors import PolicyError

BFP8, BFP4 = "bfp8(axis=out)", "bfp4(axis=out)"
FORMATS = {"bf16": "bf16", "bfp_bf8": BFP8, "bfp_bf4": BFP4}


def kernels(format_name):
    return Policy(params={"kernel": format_name, "default": None})


def test_one_type_of_tt_xla_is_the_default():
    assert from_tt_xla("bfp_bf8") == MixedPrecision({}, kernels(BFP8))
    assert from_tt_xla("bf16") == MixedPrecision({}, as_policy("bf16"))


def test_a_map_of_tt_xla_keeps_its_order():
    found = from_tt_xla(
        {
            "lm_head.weight": "bf16",
            "default": "bfp_bf8",
            "model.layers.*.mlp.*": "bfp_bf4",
            "model.embed.weight": "bf16",
        }
    )
    assert list(found.rules) == ["lm_head.weight", "model.layers.*.mlp.*", "model.embed.weight"]
    assert found.rules["model.layers.*.mlp.*"] == kernels(BFP4)
    assert found.default == kernels(BFP8)


@pytest.mark.parametrize("name", ["scale", "embedding", "bias", "scale_inv"])
def test_block_formats_of_tt_xla_leave_what_is_no_linear_weight_alone(name):
    # The template that tt-xla writes lists norms and embeddings too, and there they are inert.
    precision = from_tt_xla({"model.norm.weight": "bfp_bf8", "default": "bfp_bf4"})
    decisions = precision.resolve({f"output_norm.{name}": "model.norm.weight", f"other.{name}": "other.weight"})
    assert [resolve_format(decision.policy, name) for decision in decisions.values()] == [None, None]


def test_an_exact_name_that_a_later_glob_of_tt_xla_overwrites_is_left_out():
    found = from_tt_xla({"a.weight": "bf16", "b.weight": "bf16", "a.*": "bfp_bf8", "a.b.weight": "bfp_bf4"})
    assert list(found.rules) == ["b.weight", "a.*", "a.b.weight"]


def tt_xla(overrides, names):
    """What tt-xla does: the default for every weight, then every entry in order, the last one staying."""
    overrides = dict(overrides)
    default = overrides.pop("default", None)
    resolved = {name: default for name in names if default is not None and name.endswith(".weight")}
    for pattern, dtype in overrides.items():
        resolved |= {name: dtype for name in names if fnmatchcase(name, pattern)}
    return resolved


_TENSORS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(lambda words: ".".join(words))
_TENSORS = _TENSORS.map("{}.weight".format)
_GLOBS = st.lists(st.sampled_from(["a", "b", ".", "*", "?", "[ab]"]), min_size=1, max_size=4).map("".join)
_OVERRIDES = st.dictionaries(
    st.one_of(_TENSORS, _GLOBS, _GLOBS.map("{}.weight".format), st.just("default")),
    st.sampled_from(list(FORMATS)),
    max_size=6,
)


@given(overrides=_OVERRIDES, names=st.lists(_TENSORS, min_size=1, max_size=4, unique=True))
@example(overrides={"a.weight": "bf16", "*": "bfp_bf8", "default": "bfp_bf4"}, names=["a.weight"])
@example(overrides={"*": "bfp_bf8", "a.weight": "bf16"}, names=["a.weight"])
@example(overrides={"default": "bf16", "*": "bfp_bf8"}, names=["a.weight"])
def test_every_weight_gets_the_type_that_tt_xla_gives_it(overrides, names):
    precision = from_tt_xla(overrides)
    expected = tt_xla(overrides, names)
    for number, name in enumerate(names):
        # Ours is matched too. Only where a glob means our path and not their name is there a difference.
        path = f"decoder.blocks.{number}.kernel"
        found = resolve_format(precision.decide(path, name).policy, "kernel")
        if all(fnmatchcase(path, glob) <= fnmatchcase(name, glob) for glob in overrides):
            assert str(found) == FORMATS.get(expected.get(name), "None")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"*.weight": "bfp8", "lm_head.weight": "f32", "default": "bf16"},
            "tt-xla: 2 problems\n"
            "  - rule '*.weight': has no type 'bfp8' (expected bf16, bfp_bf8, bfp_bf4)\n"
            "  - rule 'lm_head.weight': has no type 'f32' (expected bf16, bfp_bf8, bfp_bf4)",
        ),
        (
            "BF16",
            "tt-xla: rule 'default': has no type 'BF16' (expected bf16, bfp_bf8, bfp_bf4)",
        ),
        (
            {"a.{0}.weight": "bf16", "re:.*": "bf16", "norm": "bf16"},
            "tt-xla: 3 problems\n"
            "  - rule 'a.{0}.weight': is a name or a glob there, and something else here. Write it with *, ? or [...]\n"
            "  - rule 're:.*': is a name or a glob there, and something else here. Write it with *, ? or [...]\n"
            "  - rule 'norm': is a name or a glob there, and something else here. Write it with *, ? or [...]",
        ),
        (["bf16"], "tt-xla: overrides: are not a map (expected pattern: type)"),
        ({"*": ["bf16"]}, "tt-xla: rule '*': has no type ['bf16'] (expected bf16, bfp_bf8, bfp_bf4)"),
    ],
)
def test_what_tt_xla_does_not_have_is_refused(data, text):
    with pytest.raises(PolicyError) as caught:
        from_tt_xla(data)
    assert str(caught.value) == text
