"""Parts of fused, dealt out and transposed tensors in every format: the values of the whole, and the whole again."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bombus.kernels import Weight, dequantize, quantize
from bombus.loader.layouts import CODES
from bombus.loader.selection import Selection
from bombus.loader.units import Unit
from bombus.models.mapping import Place
from bombus.policies.errors import PlanError
from bombus.policies.formats import Format, find_format

OUTPUTS, INPUTS = 480, 200
# What three layers have of 480 outputs: one after the other, none of them from a tile's edge on; and in turn.
CONTIGUOUS = [np.arange(288), np.arange(288, 384), np.arange(384, 480)]
IN_TURN = [np.arange(480).reshape(-1, 3, 40)[:, part].reshape(-1) for part in range(3)]
ONE_BY_ONE = [np.arange(part, 480, 2) for part in range(2)]
CUTS = {"one after the other": CONTIGUOUS, "in turn": IN_TURN, "one by one": ONE_BY_ONE}
FORMATS = [
    *("f8_e4m3fn", "f8_e4m3fn(tile=64x96)", "f8_e4m3fn(tile=channel)", "f8_e4m3fn(tile=tensor)"),
    *("int4(group=40, zero_points)", "mxfp4", "nvfp4"),
]


@cache
def weight(format: Format, shape: tuple[int, int] = (OUTPUTS, INPUTS)) -> Weight:
    """Values whose size differs from row to row, so that a scale of another tile would show."""
    random = np.random.default_rng(3)
    values = random.standard_normal(shape) * np.exp(random.uniform(-2, 2, (shape[0], 1)))
    return quantize(jnp.asarray(values, jnp.float32), format)


def arrays_of(weight: Weight) -> dict[str, np.ndarray]:
    return {CODES: np.asarray(weight.codes), **{name: np.asarray(part) for name, part in weight.parts.items()}}


def values_of(arrays: dict[str, np.ndarray], format: Format, shape: tuple[int, int]) -> np.ndarray:
    parts = {name: jnp.asarray(array) for name, array in arrays.items() if name != CODES}
    weight = Weight(codes=jnp.asarray(arrays[CODES]), **parts, format=format, shape=shape)
    return np.asarray(_dequantize(weight))


@jax.jit
def _dequantize(weight: Weight) -> jax.Array:
    return dequantize(weight, jnp.dtype(jnp.float32))


def unit(cut: list[np.ndarray], *, transposed: bool = False) -> Unit:
    places = tuple(
        Place(tensor="fused.weight", layer="fused", rows=rows, outputs=OUTPUTS, transposed=transposed) for rows in cut
    )
    paths = tuple(f"part_{number}.kernel" for number in range(len(cut)))
    return Unit(paths=paths, places=places, shapes=tuple((len(rows), INPUTS) for rows in cut))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_parts_have_the_values_of_the_whole_and_make_it_again(name: str, cut: str) -> None:
    whole = weight(find_format(name))
    expected = values_of(arrays_of(whole), whole.format, whole.shape)
    fused = unit(CUTS[cut])
    parts, formats = [], []
    for rows, selection in zip(CUTS[cut], fused.selections, strict=True):
        format = selection.format_of(whole.format)
        assert format is not None
        taken = selection.take(arrays_of(whole), whole.format, format)
        np.testing.assert_array_equal(values_of(taken, format, (len(rows), INPUTS)), expected[rows])
        assert taken[CODES].tobytes() == np.asarray(whole.codes)[rows].tobytes()
        parts.append(taken)
        formats.append(format)
    main = {whole.format.name: whole.format}
    assert fused.format(dict(zip(fused.paths, formats, strict=True)), main) == whole.format
    again = fused.join_low(parts, formats, whole.format)
    assert {leaf: array.tobytes() for leaf, array in again.items()} == {
        leaf: array.tobytes() for leaf, array in arrays_of(whole).items()
    }


def test_tiles_become_as_small_as_the_cut_needs() -> None:
    """288 = 2 x 128 + 32 and 40 = 5 x 8 outputs: the largest tiles of which none holds rows of two tiles."""
    fp8 = find_format("f8_e4m3fn")
    for cut, tiles in ((CONTIGUOUS, {128, 32}), (IN_TURN, {8}), (ONE_BY_ONE, {1})):
        assert {it.format_of(fp8).tile for it in unit(cut).selections} == {(rows, 128) for rows in tiles}
    aligned = [np.arange(256), np.arange(256, 480)]
    assert {it.format_of(fp8) for it in unit(aligned).selections} == {fp8}
    assert unit(IN_TURN).selections[0].format_of(find_format("bfp8(axis=out)")) is None


@pytest.mark.parametrize("name", ["f8_e4m3fn", "f8_e4m3fn(tile=64x96)", "f8_e4m3fn(tile=tensor)"])
def test_transposed_codes_take_their_tiles_along(name: str) -> None:
    whole = weight(find_format(name), (INPUTS, OUTPUTS))  # as a file of GPT-2 has it
    expected = np.asarray(dequantize(whole, jnp.dtype(jnp.float32))).T
    fused = unit(CONTIGUOUS, transposed=True)
    parts, formats = [], []
    for rows, selection in zip(CONTIGUOUS, fused.selections, strict=True):
        assert selection.file_shape((len(rows), INPUTS)) == (INPUTS, OUTPUTS)
        format = selection.format_of(whole.format)
        taken = selection.take(arrays_of(whole), whole.format, format)
        np.testing.assert_array_equal(values_of(taken, format, (len(rows), INPUTS)), expected[rows])
        parts.append(taken)
        formats.append(format)
    main = {whole.format.name: whole.format}
    assert fused.format(dict(zip(fused.paths, formats, strict=True)), main) == whole.format
    again = fused.join_low(parts, formats, whole.format)
    assert all(again[leaf].tobytes() == array.tobytes() for leaf, array in arrays_of(whole).items())


def test_parts_that_were_quantized_apart_are_written_in_smaller_tiles() -> None:
    """Three weights in 128x128 whose places in the tensor begin within tiles: 32 rows have one scale each."""
    fp8, fused = find_format("f8_e4m3fn"), unit(CONTIGUOUS)
    parts = [weight(fp8, (len(rows), INPUTS)) for rows in CONTIGUOUS]
    whole = fused.format(dict.fromkeys(fused.paths, fp8), {})
    assert str(whole) == "f8_e4m3fn(tile=32x128)"
    joined = fused.join_low([arrays_of(part) for part in parts], [fp8] * 3, whole)
    found = values_of(joined, whole, (OUTPUTS, INPUTS))
    np.testing.assert_array_equal(found, np.concatenate([dequantize(part, jnp.dtype(jnp.float32)) for part in parts]))


def test_parts_that_are_not_alike_are_refused() -> None:
    fused, fp8 = unit(ONE_BY_ONE), find_format("f8_e4m3fn")
    with pytest.raises(PlanError) as caught:
        fused.format({"part_0.kernel": fp8, "part_1.kernel": find_format("bf16")}, {})
    assert str(caught.value) == (
        "save_model: tensor fused.weight: cannot hold its parameters as they are stored: they must be alike and in "
        "tiles that fit it (found part_0.kernel in f8_e4m3fn, part_1.kernel in bf16). Give all of them one format, or "
        "bombus.dequantize the model before saving it"
    )
    one = find_format("f8_e4m3fn(tile=tensor)")
    scales = [{CODES: np.zeros((240, 2), np.uint8), "scale_inv": np.full((1, 1), scale)} for scale in (1.0, 2.0)]
    with pytest.raises(PlanError, match="they must be alike"):
        fused.join_low(scales, [one, one], one)


def test_plain_values_of_stacked_experts_are_dealt_out() -> None:
    """gpt-oss: (experts, in, out), gates and intermediates in turn."""
    random = np.random.default_rng(1)
    gate, up = random.standard_normal((2, 3, 5, 4))
    places = tuple(
        Place(tensor="x", layer="x", rows=np.arange(part, 10, 2), outputs=10, transposed=True, stacked=True)
        for part in range(2)
    )
    stack = Unit(paths=("gate.kernel", "intermediate.kernel"), places=places, shapes=((3, 5, 4), (3, 5, 4)))
    joined = stack.join([gate, up])
    assert joined.shape == (3, 4, 10)
    np.testing.assert_array_equal(joined[1, :, 6], gate[1, 3])
    np.testing.assert_array_equal(joined[2, :, 9], up[2, 4])
    select = Selection(rows=np.arange(1, 10, 2), outputs=10, transposed=True)
    taken = select.take({CODES: joined[2]}, find_format("f32"), find_format("f32"))
    np.testing.assert_array_equal(taken[CODES], up[2])
