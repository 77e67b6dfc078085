"""How formats are spelled, and what is refused, with what was meant."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bombus.policies.errors import PolicyError
from bombus.policies.formats import FORMATS, find_format

NAMES = ["f32", "bf16", "f16", "f8_e4m3fn", "f8_e5m2", "int8", "int4", "bfp8", "bfp4", "mxfp8", "mxfp4", "nvfp4"]
KNOWN = "Known: " + ", ".join(NAMES)

# As it may be written -> as it is written back.
SPELLINGS = {
    **{name: name for name in NAMES},
    " int4 ( group = 64 , zero_points ) ": "int4(group=64, zero_points)",
    "int4(zero_points,group=64)": "int4(group=64, zero_points)",
    "int4()": "int4",
    "int4(group=channel)": "int4(group=channel)",
    "int4(zero_points=true)": "int4(zero_points)",
    "int4(zero_points=False)": "int4(zero_points=False)",
    "int4(scale=F16)": "int4(scale=f16)",
    "int8(group=128,scale=bf16)": "int8(group=128, scale=bf16)",
    "f8_e4m3fn(tile=64x96)": "f8_e4m3fn(tile=64x96)",
    "f8_e4m3fn(tile=tensor,scale=e8m0)": "f8_e4m3fn(tile=tensor, scale=e8m0)",
    "f8_e5m2(scale=f16,tile=channel)": "f8_e5m2(tile=channel, scale=f16)",
    "bfp8(axis=out)": "bfp8(axis=out)",
    "bfp4(scale_rule=search,axis=in)": "bfp4(axis=in, scale_rule=search)",
    "mxfp8(element=f8_e5m2,scale_rule=ceil)": "mxfp8(element=f8_e5m2, scale_rule=ceil)",
    "mxfp4(scale_rule=even)": "mxfp4(scale_rule=even)",
}


def refusal(value: object) -> str:
    """The whole text with which something that is no format is refused."""
    with pytest.raises(PolicyError) as caught:
        find_format(value)
    return str(caught.value)


def test_the_registry_is_closed() -> None:
    """The names, in the order that messages list them in."""
    assert list(FORMATS) == NAMES
    assert [name for name in NAMES if not find_format(name).is_low] == ["f32", "bf16", "f16"]


@pytest.mark.parametrize(("written", "shown"), SPELLINGS.items(), ids=str)
def test_a_format_is_written_back_as_it_is_read(written: str, shown: str) -> None:
    """Spaces, order and case do not matter; what is written back reads as the same format."""
    found = find_format(written)
    assert str(found) == repr(found) == shown
    assert find_format(shown) == found
    assert hash(find_format(shown)) == hash(found)
    assert find_format(found) is found


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("int4", {"group": 128, "zero_points": False, "scale": "bf16"}),
        ("int4(group=channel, zero_points)", {"group": 0, "zero_points": True, "scale": "bf16"}),
        ("int8", {"group": 0, "scale": "f32"}),
        ("f8_e4m3fn", {"tile": (128, 128), "scale": "f32"}),
        ("f8_e5m2(tile=channel)", {"tile": (1, 0), "scale": "f32"}),
        ("f8_e5m2(tile=tensor)", {"tile": (0, 0)}),
        ("f8_e4m3fn(tile=2x3)", {"tile": (2, 3)}),
        ("bfp8", {"axis": "in", "scale_rule": "max"}),
        ("bfp4(scale_rule=search)", {"axis": "in", "scale_rule": "search"}),
        ("mxfp8", {"element": "f8_e4m3fn", "scale_rule": "floor"}),
        ("mxfp4(scale_rule=ceil)", {"scale_rule": "ceil"}),
    ],
)
def test_an_option_is_as_given_else_its_default(written: str, options: dict[str, object]) -> None:
    """Values are numbers, words or tiles, not texts."""
    assert {name: find_format(written).option(name) for name in options} == options


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float32, "f32"),
        (jnp.float32, "f32"),
        (np.dtype(np.float16), "f16"),
        (jnp.bfloat16, "bf16"),
        (ml_dtypes.bfloat16, "bf16"),
        (jnp.dtype(jnp.float8_e4m3fn), "f8_e4m3fn"),
        (ml_dtypes.float8_e5m2, "f8_e5m2"),
        (np.int8, "int8"),
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("float8_e4m3fn", "f8_e4m3fn"),
        ("float8_e5m2(tile=channel)", "f8_e5m2(tile=channel)"),
    ],
)
def test_types_and_their_names_are_formats(value: object, name: str) -> None:
    """NumPy's and JAX's types, and their own names."""
    assert str(find_format(value)) == name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fp8", "type 'fp8': is not a storage format. The closest are 'bfp8', 'mxfp8', 'bfp4'"),
        ("int2", "type 'int2': is not a storage format. The closest are 'int8', 'int4'"),
        ("f4", "type 'f4': is not a storage format. The closest are 'bfp4', 'nvfp4', 'mxfp4'"),
        ("", f"type '': is not a storage format. {KNOWN}"),
        ("int4(group=64", f"type 'int4(group=64': is not a storage format. {KNOWN}"),
        ("int4 group=64", f"type 'int4 group=64': is not a storage format. {KNOWN}"),
        (None, f"type 'None': is not a storage format. {KNOWN}"),
        (np.complex64, f"type 'complex64': is not a storage format. {KNOWN}"),
        (np.int32, "type 'int32': is not a storage format. The closest are 'int8', 'int4', 'f32'"),
        ({"kernel": "bf16"}, f"type \"{{'kernel': 'bf16'}}\": is not a storage format. {KNOWN}"),
    ],
    ids=str,
)
def test_unknown_formats_are_refused(value: object, message: str) -> None:
    """With the nearest known names."""
    assert refusal(value) == message


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("bf16(group=64)", "format 'bf16': has no option 'group'. It has no options"),
        ("nvfp4(group=16)", "format 'nvfp4': has no option 'group'. It has no options"),
        ("mxfp4(element=e2m1)", "format 'mxfp4': has no option 'element'. Its options are scale_rule"),
        ("int8(zero_points)", "format 'int8': has no option 'zero_points'. Its options are group, scale"),
        ("int4(64)", "format 'int4': has no option '64'. Its options are group, zero_points, scale"),
        ("int4(=64)", "format 'int4': has no option ''. Its options are group, zero_points, scale"),
        ("f8_e4m3fn(block=64)", "format 'f8_e4m3fn': has no option 'block'. Its options are tile, scale"),
        ("bfp8(rule=max)", "format 'bfp8': has no option 'rule'. Its options are axis, scale_rule"),
        ("bfp8(scale=f32)", "format 'bfp8': has no option 'scale'. Its options are axis, scale_rule"),
    ],
)
def test_unknown_options_are_refused(written: str, message: str) -> None:
    """With the options that the format has."""
    assert refusal(written) == message


GROUP = "is not a size (expected channel, or the number of inputs, like 64)"
TILE = "is not a tile (expected channel, tensor, or outputs x inputs, like 128x128)"


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("int4", "group=0", GROUP),
        ("int4", "group=-64", GROUP),
        ("int4", "group=64.0", GROUP),
        ("int8", "group=", GROUP),
        ("int8", "group=64)", GROUP),
        ("int4", "zero_points=yes", "is not known (expected False, True)"),
        ("int4", "scale=e8m0", "is not known (expected f32, bf16, f16)"),
        ("f8_e4m3fn", "scale=int8", "is not known (expected f32, bf16, f16, e8m0)"),
        ("f8_e4m3fn", "tile=128", TILE),
        ("f8_e4m3fn", "tile=0x128", TILE),
        ("f8_e5m2", "tile=row", TILE),
        ("bfp8", "axis=0", "is not known (expected in, out)"),
        ("bfp4", "scale_rule=floor", "is not known (expected max, search)"),
        ("mxfp8", "element=f8_e3m4", "is not known (expected f8_e4m3fn, f8_e5m2)"),
        ("mxfp4", "scale_rule=max", "is not known (expected floor, even, ceil)"),
    ],
)
def test_values_that_an_option_does_not_take_are_refused(name: str, option: str, message: str) -> None:
    """With those that it takes."""
    assert refusal(f"{name}({option})") == f"format {name!r}, option {option!r}: {message}"


@pytest.mark.parametrize("second", ["group=64", "group=32", "group=channel"])
def test_an_option_that_is_given_twice_is_refused(second: str) -> None:
    """Even where both say the same."""
    expected = f"format 'int4', option {second!r}: is given twice (expected each option once)"
    assert refusal(f"int4(group=64, zero_points, {second})") == expected
