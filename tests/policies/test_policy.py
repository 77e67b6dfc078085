"""Policy: what a field resolves to for a parameter, what a cast does, and which policies are refused."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bombus.policies import Policy, cast, create_policy, resolve_format, resolve_type
from bombus.policies.errors import PolicyError
from bombus.policies.formats import find_format

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
F32 = np.dtype(np.float32)
KNOWN = "Known: f32, bf16, f16, f8_e4m3fn, f8_e5m2, int8, int4, bfp8, bfp4, mxfp8, mxfp4, nvfp4"


def resolved(policy, name=None):
    """What a policy gives to a parameter in each field: (format, type, type)."""
    return resolve_format(policy, name), resolve_type(policy, "compute", name), resolve_type(policy, "output", name)


@pytest.mark.parametrize("name", [None, "kernel", "bias"])
@pytest.mark.parametrize("field", ["params", "compute", "output"])
def test_a_plain_type_is_the_type_of_every_parameter(field, name):
    fields = ("params", "compute", "output")
    given = {"params": find_format("bf16"), "compute": BF16, "output": BF16}
    expected = tuple(given[other] if other == field else None for other in fields)
    assert resolved(Policy(**{field: "bf16"}), name) == expected
    # A format and NumPy's type of it are equal to NumPy, and not the same to a policy.
    assert [type(value) for value in resolved(Policy(**{field: "bf16"}), name)] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({"kernel": "f8_e4m3fn", "default": "bf16"}, {"kernel": "f8_e4m3fn", "bias": "bf16", None: "bf16"}),
        ({"kernel": "f16"}, {"kernel": "f16", "bias": None, None: None}),
        # A listed None is "leave it" and does not fall through to the default.
        ({"scale_inv": None, "default": "f32"}, {"scale_inv": None, "kernel": "f32"}),
        ({"default": None}, {"kernel": None}),
        ({}, {"kernel": None}),
        # The name is looked up as it is: no glob, no prefix.
        ({"kern*": "f16", "default": "f32"}, {"kernel": "f32"}),
        ({"kernel": "int4(group=64)", "embedding": "int8"}, {"kernel": "int4(group=64)", "embedding": "int8"}),
    ],
)
def test_a_map_gives_the_listed_format_else_its_default_else_none(types, expected):
    policy = create_policy(params=types)
    formats = {name: None if value is None else find_format(value) for name, value in expected.items()}
    assert {name: resolve_format(policy, name) for name in expected} == formats


def test_a_map_gives_the_listed_type_to_compute_in():
    policy = create_policy(compute={"kernel": "bf16", "bias": None, "default": "f32"})
    assert [resolve_type(policy, "compute", name) for name in ("kernel", "bias", "scale", None)] == [
        *(BF16, None, F32, F32)
    ]


@pytest.mark.parametrize("params", ["int8", {"default": "int8"}, {"default": "int8", "scale_inv": "bf16"}])
def test_a_low_precision_format_is_for_weights_and_leaves_the_others_alone(params):
    policy = Policy(params=params)
    int8 = find_format("int8")
    assert [resolve_format(policy, name) for name in ("kernel", "embedding", None)] == [int8] * 3
    assert [resolve_format(policy, name) for name in ("bias", "scale", "zero_point")] == [None] * 3
    scale = find_format("bf16") if "scale_inv" in params else None
    assert resolve_format(policy, "scale_inv") == scale


def test_no_policy_and_an_empty_one_leave_everything():
    assert resolved(None, "kernel") == resolved(Policy(), "kernel") == (None, None, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("f32", "f32"),
        ("float32", "f32"),
        (jnp.float32, "f32"),
        (np.float16, "f16"),
        ("bfloat16", "bf16"),
        (jnp.bfloat16, "bf16"),
        (np.dtype(ml_dtypes.bfloat16), "bf16"),
        ("float8_e4m3fn", "f8_e4m3fn"),
        (jnp.float8_e4m3fn, "f8_e4m3fn"),
        (jnp.int8, "int8"),
        (find_format("int4(group=64)"), "int4(group=64)"),
    ],
)
def test_formats_are_short_names_long_names_and_numpy_or_jax_types(value, expected):
    found = Policy(params=value).params
    assert (type(found), str(found)) == (type(find_format("f32")), expected)


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
        ({"params": "bf61"}, "type 'bf61': is not a storage format. The closest are 'bf16', 'f16', 'bfp8'"),
        ({"compute": "f8_e4m3"}, "type 'f8_e4m3': is not a storage format. The closest are 'f8_e4m3fn', 'f8_e5m2'"),
        ({"output": "quark"}, f"type 'quark': is not a storage format. {KNOWN}"),
        ({"params": {"kernel": "f23"}}, "type 'f23': is not a storage format. The closest are 'f32'"),
        # float64 exists in NumPy and is off in JAX; int32 is no type to store weights in.
        ({"params": np.float64}, f"type 'float64': is not a storage format. {KNOWN}"),
        ({"params": "q4"}, f"type 'q4': is not a storage format. {KNOWN}"),
        ({"params": np.int32}, "type 'int32': is not a storage format. The closest are 'int8', 'int4', 'f32'"),
        (
            {"params": {"kernel": "int8", "bias": "int8"}},
            "Policy.params: cannot store 'bias' as int8, which is for weights "
            "(expected kernel, embedding, default). Give 'bias' f32, bf16, f16 or None",
        ),
        (
            {"params": {"scale": "mxfp4", "scale_inv": "f8_e4m3fn", "default": "mxfp4"}},
            "2 problems\n"
            "  - Policy.params: cannot store 'scale' as mxfp4, which is for weights "
            "(expected kernel, embedding, default). Give 'scale' f32, bf16, f16 or None\n"
            "  - Policy.params: cannot store 'scale_inv' as f8_e4m3fn, which is for weights "
            "(expected kernel, embedding, default). Give 'scale_inv' f32, bf16, f16 or None",
        ),
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
    assert resolve_format(policy, "kernel") == find_format("f16")
    assert resolve_format(policy, "bias") is None


def test_names_are_those_that_a_map_lists_itself():
    policy = Policy(params={"kernel": "bf16", "scale_inv": None, "default": "f32"}, compute="f32")
    assert policy.names("params", "kernel")
    assert policy.names("params", "scale_inv")
    assert not policy.names("params", "bias")
    assert not policy.names("compute", "kernel")


def test_the_repr_shows_short_names():
    policy = create_policy(params={"kernel": "f8_e4m3fn", "scale_inv": None}, compute=jnp.bfloat16)
    assert repr(policy) == "Policy(params={'kernel': f8_e4m3fn, 'scale_inv': None}, compute=bf16, output=None)"
