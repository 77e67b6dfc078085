"""from_first_match: the first rule that matches wins, as it does where such rules are from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombus.policies import from_first_match, resolve_format
from bombus.policies.errors import PolicyError
from bombus.policies.formats import find_format

MODULES = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")] + ["lm_head"]


def _first_match(rules, name, default):
    """Their rule: the first pattern that matches at the start of a name or stands somewhere in it."""
    found = (value for pattern, value in rules.items() if re.match(pattern, name) or pattern in name)
    return next(found, default)


@given(
    st.dictionaries(
        st.sampled_from(
            ["mlp", "attn", "model.layers.1", r"model\.layers\.\d+\.mlp", "q_proj|lm", "lm_head", "layers.[01]"]
        ),
        st.sampled_from(["fp16", "bf16", "int8", "int4", "fp32"]),
    ),
    st.sampled_from(["int8", "fp32"]),
)
def test_the_first_match_wins_as_it_does_there(rules, default):
    ours = from_first_match(rules, default=default)
    names = {"fp16": "f16", "fp32": "f32"}
    for module in MODULES:
        wanted = _first_match(rules, module, default)
        found = resolve_format(ours.decide("no.path.of.ours.kernel", f"{module}.weight").policy, "kernel")
        assert found == find_format(names.get(wanted, wanted)), module


def test_a_first_match_that_is_no_expression_is_refused():
    with pytest.raises(PolicyError, match="is not a regular expression"):
        from_first_match({"layers[": "int8"})
