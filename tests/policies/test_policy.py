"""Policy: what a field resolves to for a parameter, what a cast does, and which policies are refused."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bombus.policies import Policy, cast, create_policy, resolve_type
from bombus.policies.errors import PolicyError

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
F16 = np.dtype(np.float16)
F32 = np.dtype(np.float32)


@pytest.mark.parametrize("field", ["params", "compute", "output"])
def test_a_plain_type_is_the_type_of_every_parameter(field):
    policy = Policy(**{field: "bf16"})
    assert resolve_type(policy, field) == BF16
    assert resolve_type(policy, field, "kernel") == BF16
    assert [resolve_type(policy, other, "kernel") for other in {"params", "compute", "output"} - {field}] == [None] * 2


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({"kernel": "f8_e4m3fn", "default": "bf16"}, {"kernel": F8, "bias": BF16, None: BF16}),
        ({"kernel": "f16"}, {"kernel": F16, "bias": None, None: None}),
        # A listed None is "leave it" and does not fall through to the default.
        ({"scale_inv": None, "default": "f32"}, {"scale_inv": None, "kernel": F32}),
        ({"default": None}, {"kernel": None}),
        ({}, {"kernel": None}),
        # The name is looked up as it is: no glob, no prefix.
        ({"kern*": "f16", "default": "f32"}, {"kernel": F32}),
    ],
)
def test_a_map_gives_the_listed_type_else_its_default_else_none(types, expected):
    policy = create_policy(params=types)
    assert {name: resolve_type(policy, "params", name) for name in expected} == expected


def test_no_policy_and_an_empty_one_leave_everything():
    assert resolve_type(None, "params", "kernel") is None
    assert resolve_type(Policy(), "compute", "kernel") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("f32", F32),
        ("float32", F32),
        (jnp.float32, F32),
        (np.float16, F16),
        ("bfloat16", BF16),
        (jnp.bfloat16, BF16),
        (np.dtype(ml_dtypes.bfloat16), BF16),
        ("float8_e4m3fn", F8),
        (jnp.float8_e4m3fn, F8),
    ],
)
def test_types_are_short_names_long_names_and_numpy_or_jax_types(value, expected):
    assert Policy(params=value).params == expected


def test_a_cast_rounds_to_the_type_of_the_parameter():
    policy = Policy(compute={"kernel": "bf16", "default": None})
    # 1 + 2**-9 lies between two bfloat16 values, 1 and 1 + 2**-7, and is nearer to 1.
    value = jnp.asarray([1.0 + 2**-9, -3.0], jnp.float32)
    kernel = cast(value, policy, "compute", "kernel")
    assert kernel.dtype == BF16
    assert kernel.astype(jnp.float32).tolist() == [1.0, -3.0]
    assert cast(value, policy, "compute", "bias") is value


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.uint8, jnp.bool_])
def test_integers_and_booleans_are_never_cast(dtype):
    value = jnp.asarray([0, 1, 1], dtype)
    assert cast(value, Policy(params="bf16"), "params", "kernel") is value


@pytest.mark.parametrize("wanted", ["f8_e4m3fn", None])
def test_codes_stay_codes_where_nothing_else_is_asked(wanted):
    codes = jnp.asarray([1.0, -448.0], jnp.float8_e4m3fn)
    assert cast(codes, Policy(params=wanted), "params", "kernel") is codes


@pytest.mark.parametrize(
    ("dtype", "field", "to", "text"),
    [
        (
            jnp.float8_e4m3fn,
            "compute",
            "bf16",
            "a cast from f8_e4m3fn to bf16: would drop the scale that f8_e4m3fn codes need. "
            "Quantize or dequantize with the scale instead",
        ),
        (
            jnp.float32,
            "params",
            "f8_e4m3fn",
            "a cast from f32 to f8_e4m3fn: would drop the scale that f8_e4m3fn codes need. "
            "Quantize or dequantize with the scale instead",
        ),
    ],
)
def test_a_bare_cast_from_or_to_codes_is_refused(dtype, field, to, text):
    with pytest.raises(PolicyError) as caught:
        cast(jnp.ones((2,), dtype), Policy(**{field: to}), field, "kernel")
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"params": "bf61"}, "type 'bf61': is not a storage format. The closest are 'bf16', 'f16'"),
        ({"compute": "f8_e4m3"}, "type 'f8_e4m3': is not a storage format. The closest are 'f8_e4m3fn'"),
        ({"output": "quark"}, "type 'quark': is not a storage format. Known: f32, bf16, f16, f8_e4m3fn"),
        ({"params": {"kernel": "f23"}}, "type 'f23': is not a storage format. The closest are 'f32'"),
        # float64 exists in NumPy and is off in JAX; integers are no type to store weights in.
        ({"params": np.float64}, "type 'float64': is not a storage format. Known: f32, bf16, f16, f8_e4m3fn"),
        ({"params": jnp.int8}, "type 'int8': is not a storage format. Known: f32, bf16, f16, f8_e4m3fn"),
        (
            {"output": {"kernel": "bf16"}},
            "Policy.output: is what a whole layer returns and cannot be a map "
            "(expected a type or None, found {'kernel': 'bf16'})",
        ),
        (
            {"compute": "f8_e4m3fn"},
            "Policy.compute: cannot be f8_e4m3fn: nothing is computed in a storage format "
            "(expected f32, bf16 or f16). Give f8_e4m3fn as `params` and the type to dequantize to as `compute`",
        ),
        (
            {"compute": {"default": "f32", "kernel": jnp.float8_e4m3fn}},
            "Policy.compute: cannot be f8_e4m3fn: nothing is computed in a storage format "
            "(expected f32, bf16 or f16). Give f8_e4m3fn as `params` and the type to dequantize to as `compute`",
        ),
        (
            {"output": "f8_e4m3fn"},
            "Policy.output: cannot be f8_e4m3fn: nothing is computed in a storage format "
            "(expected f32, bf16 or f16). Give f8_e4m3fn as `params` and the type to dequantize to as `compute`",
        ),
    ],
)
def test_a_malformed_policy_is_refused_with_its_field_and_a_remedy(fields, text):
    with pytest.raises(PolicyError) as caught:
        create_policy(**fields)
    assert str(caught.value) == text
    assert isinstance(caught.value, ValueError)


def test_policies_are_equal_and_hash_alike_when_they_say_the_same():
    first = create_policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}, compute="bf16", output="f32")
    # Other spellings of the same types, in another order.
    second = Policy(params={"default": jnp.bfloat16, "kernel": "float8_e4m3fn"}, compute=jnp.bfloat16, output="float32")
    assert first == second
    assert hash(first) == hash(second)
    assert len({first, second}) == 1
    others = [
        create_policy(params={"kernel": "f8_e4m3fn"}, compute="bf16", output="f32"),
        create_policy(params={"kernel": "f8_e4m3fn", "default": "f16"}, compute="bf16", output="f32"),
        create_policy(params="bf16", compute="bf16", output="f32"),
        create_policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}, compute="bf16"),
    ]
    assert len({first, *others}) == 5


def test_a_policy_does_not_change_with_the_dict_it_was_made_from():
    types = {"kernel": "f16"}
    policy = Policy(params=types)
    types["kernel"] = "f32"
    types["bias"] = "f32"
    assert resolve_type(policy, "params", "kernel") == F16
    assert resolve_type(policy, "params", "bias") is None


def test_names_are_those_that_a_map_lists_itself():
    policy = Policy(params={"kernel": "bf16", "scale_inv": None, "default": "f32"}, compute="f32")
    assert policy.names("params", "kernel")
    assert policy.names("params", "scale_inv")
    assert not policy.names("params", "bias")
    assert not policy.names("compute", "kernel")


def test_the_repr_shows_short_names():
    policy = create_policy(params={"kernel": "f8_e4m3fn", "scale_inv": None}, compute=jnp.bfloat16)
    assert repr(policy) == "Policy(params={'kernel': f8_e4m3fn, 'scale_inv': None}, compute=bf16, output=None)"
