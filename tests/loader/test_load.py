"""load_model: what reading does to values, what strict=False does, other heads, the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy_decoder import dequantize, read_tensors
from safetensors.numpy import save_file

import bombus
from bombus.models.model import flat

GATE, GATE_NAME = "decoder.blocks.0.ffn.gate.kernel", "model.layers.0.mlp.gate_proj.weight"
GATE_SCALE = "decoder.blocks.0.ffn.gate.scale_inv"


def changed(folder: Path, target: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(folder, target)
    tensors = dict(read_tensors(folder))
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_fp8_is_made_while_loading_when_the_policy_asks(tiny: Callable[..., Path]) -> None:
    """A bf16 checkpoint with f8_e4m3fn for one kernel: scales are amax/448 per tile, codes the nearest."""
    folder = tiny("qwen3", "bf16")
    fp8 = bombus.create_policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}, compute="f32")
    loaded = bombus.load_model(folder, policy={"decoder.blocks.0.ffn.gate.kernel": fp8, "default": "bf16"})
    values = flat(loaded.params)
    source = read_tensors(folder)[GATE_NAME].astype(np.float32)
    scale = np.asarray(values["decoder.blocks.0.ffn.gate.scale_inv"])
    for row in range(3):
        for column in range(2):
            tile = np.s_[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
            assert scale[row, column] == pytest.approx(np.abs(source[tile]).max() / 448, rel=1e-6)
    restored = dequantize(np.asarray(values[GATE]), scale, (128, 128))
    # Three bits of mantissa: half a unit of the last place is 1/16, and subnormals have a fixed step.
    step = scale.repeat(128, 0).repeat(128, 1)[:320, :192] * 2.0**-9
    assert (np.abs(restored - source) <= np.maximum(np.abs(source) / 16, step / 2) * 1.001).all()
    assert values["decoder.blocks.1.ffn.gate.kernel"].dtype == jnp.bfloat16
    # With its scales: six of them in float32.
    assert loaded.report.to_json()["stored_bytes"]["f8_e4m3fn"] == 320 * 192 + 6 * 4
    assert np.isfinite(np.asarray(jax.jit(loaded.model.apply)(loaded.params, np.array([[1, 2, 3]])).logits)).all()


def test_a_cast_of_scales_keeps_the_codes(tiny: Callable[..., Path]) -> None:
    """Bit for bit, and every scale is the file's, rounded to bf16."""
    folder = tiny("qwen3")
    policy = {"*.gate.*": {"params": {"kernel": "f8_e4m3fn", "scale_inv": "bf16"}}}
    loaded = bombus.load_model(folder, policy=policy, preserve_source_types=True)
    values, tensors = flat(loaded.params), read_tensors(folder)
    assert np.asarray(values[GATE]).tobytes() == tensors[GATE_NAME].tobytes()
    scale = np.asarray(values[GATE_SCALE])
    assert scale.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(scale, tensors[f"{GATE_NAME}_scale_inv"].astype(ml_dtypes.bfloat16))
    (row,) = [row for row in loaded.report.to_json()["parameters"] if row["parameter"] == GATE]
    assert (row["in file"], row["stored"], row["action"], row["bytes"]) == (
        *("f8_e4m3fn", "f8_e4m3fn(scale=bf16)[320, 192]", "cast"),
        320 * 192 + 2 * 6,
    )


def test_scales_of_powers_of_two_are_made_with_their_codes(tiny: Callable[..., Path]) -> None:
    """e8m0 scales cannot hold the file's: the weights keep their values to the rounding of FP8, not to a third."""
    folder = tiny("qwen3")
    values = flat(bombus.load_model(folder, policy={GATE: "f8_e4m3fn(scale=e8m0)"}).params)
    tensors = read_tensors(folder)
    expected = dequantize(tensors[GATE_NAME], tensors[f"{GATE_NAME}_scale_inv"], (128, 128))
    scale = np.asarray(values[GATE_SCALE])
    assert scale.dtype == ml_dtypes.float8_e8m0fnu
    found = dequantize(np.asarray(values[GATE]), scale.astype(np.float64), (128, 128))
    assert np.abs(found - expected).max() <= np.abs(expected).max() / 16


def test_an_fp8_file_is_made_int4_by_way_of_its_values(tiny: Callable[..., Path]) -> None:
    """Groups of 64 inputs, each within half a step of what the FP8 weights are; the report says what was done."""
    folder = tiny("qwen3")
    loaded = bombus.load_model(folder, policy={"*.gate.kernel": "int4(group=64)"})
    values, tensors = flat(loaded.params), read_tensors(folder)
    expected = dequantize(tensors[GATE_NAME], tensors[f"{GATE_NAME}_scale_inv"], (128, 128))
    packed, scale = np.asarray(values[GATE]), np.asarray(values[GATE_SCALE]).astype(np.float64)
    assert (packed.dtype, packed.shape, scale.shape) == (np.uint8, (320, 96), (320, 3))
    # A group's largest value is seven steps, rounded to bf16, of which the scales are.
    largest = np.abs(expected.reshape(320, 3, 64)).max(-1)
    np.testing.assert_allclose(scale, largest / 7, rtol=2.0**-8)
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(320, 192).astype(np.float64) - 8
    steps = scale.repeat(64, 1)
    assert (np.abs(codes * steps - expected) <= 0.5001 * steps + 2.0**-8 * np.abs(expected)).all()
    (row,) = [row for row in loaded.report.to_json()["parameters"] if row["parameter"] == GATE]
    assert row == {
        "parameter": GATE,
        "tensor": GATE_NAME,
        "in file": "f8_e4m3fn",
        "stored": "int4(group=64)[320, 192]",
        "computed": "bf16",
        "action": "requantize",
        "bytes": 320 * 96 + 2 * 320 * 3,
        "rule": "*.gate.kernel",
    }


def test_values_that_are_not_finite_are_not_quantized(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """They would make a whole group of weights NaN; the error names the tensor and the file."""

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[GATE_NAME] = tensors[GATE_NAME].copy()
        tensors[GATE_NAME][300, 5] = np.inf

    folder = changed(tiny("llama", "f32"), tmp_path / "spoiled", spoil)
    with pytest.raises(bombus.LoadError) as caught:
        bombus.load_model(folder, policy={GATE: "int8"})
    assert str(caught.value) == (
        f"{folder / 'model.safetensors'}: tensor {GATE_NAME}: cannot be stored as int8: it has values that are not "
        "finite, or too large or too small for its scales. "
        "Load it as f32 to see them, or give this parameter another format"
    )


def test_a_cast_rounds_once(tiny: Callable[..., Path]) -> None:
    """float32 to bf16 as NumPy rounds; float64 files become float32, which the report shows as a cast."""
    folder = tiny("llama", "f32")
    loaded = bombus.load_model(folder, policy={"*.ffn.*": "bf16"})
    source = read_tensors(folder)[GATE_NAME]
    found = np.asarray(flat(loaded.params)[GATE])
    np.testing.assert_array_equal(found, source.astype(ml_dtypes.bfloat16))
    assert flat(loaded.params)["output_norm.scale"].dtype == jnp.float32


def test_float64_becomes_float32(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """JAX has no float64 by default, so the file's values are rounded, and the report says so."""

    def widen(tensors: dict[str, np.ndarray]) -> None:
        tensors[GATE_NAME] = tensors[GATE_NAME].astype(np.float64)

    loaded = bombus.load_model(changed(tiny("llama", "f32"), tmp_path / "wide", widen))
    (row,) = [row for row in loaded.report.to_json()["parameters"] if row["parameter"] == GATE]
    assert (row["in file"], row["stored"], row["action"]) == ("float64", "f32[320, 192]", "cast")
    np.testing.assert_array_equal(np.asarray(flat(loaded.params)[GATE]), read_tensors(tiny("llama", "f32"))[GATE_NAME])


def test_strict_false_initialises_what_is_missing_and_says_so(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A fresh classification head on a causal checkpoint, the same each time; the rest is the file's."""
    folder = tiny("qwen3", "bf16")
    with pytest.raises(bombus.PlanError, match=r"tensor score.weight: is missing; parameter sequence_classification"):
        bombus.load_model(folder, architecture="sequence_classification")
    first, second = (bombus.load_model(folder, architecture="sequence_classification", strict=False) for _ in range(2))
    name = "sequence_classification_head.output.kernel"
    assert first.report.initialised == (name,)
    assert f"NOT in the checkpoint, initialised (strict=False): {name}" in str(first.report)
    head = np.asarray(flat(first.params)[name]).astype(np.float32)
    assert head.shape == (2, 192)
    assert head.std() == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(head, np.asarray(flat(second.params)[name]).astype(np.float32))
    np.testing.assert_array_equal(
        np.asarray(flat(first.params)[GATE]).view(np.uint16), read_tensors(folder)[GATE_NAME].view(np.uint16)
    )


def test_a_parameter_that_is_initialised_in_low_precision_has_its_scales(tiny: Callable[..., Path]) -> None:
    """All that the model needs is made: codes and scales, normal(0, 0.02) when dequantized."""
    loaded = bombus.load_model(
        tiny("qwen3", "bf16"), architecture="sequence_classification", strict=False, policy="f8_e4m3fn"
    )
    name = "sequence_classification_head.output"
    assert loaded.report.initialised == (f"{name}.kernel",)
    values = flat(loaded.params)
    assert values.keys() == loaded.model.stored.keys()
    codes, scale = np.asarray(values[f"{name}.kernel"]), np.asarray(values[f"{name}.scale_inv"])
    assert (codes.dtype, codes.shape, scale.shape) == (ml_dtypes.float8_e4m3fn, (2, 192), (1, 2))
    assert dequantize(codes, scale, (128, 128)).std() == pytest.approx(0.02, rel=0.2)


def test_strict_false_leaves_out_what_is_unexpected(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """And lists it."""

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.extra.weight"] = np.ones((2, 2), np.float32)

    folder = changed(tiny("llama", "f32"), tmp_path / "extra", add)
    with pytest.raises(bombus.PlanError, match=r"tensor model.extra.weight: is unexpected"):
        bombus.load_model(folder)
    assert "not needed by this model: model.extra.weight" in str(bombus.load_model(folder, strict=False).report)


@pytest.mark.parametrize("wanted", ["base", "Qwen3Model"])
def test_the_backbone_of_a_causal_checkpoint(wanted: str, tiny: Callable[..., Path]) -> None:
    """`architecture` takes a head or a class; the unused head is listed, not lost."""
    loaded = bombus.load_model(tiny("qwen3", "f32", tie_word_embeddings=False), architecture=wanted)
    assert loaded.spec.head == "base"
    assert loaded.report.plan.unused == ("lm_head.weight",)
    assert loaded.model.apply(loaded.params, np.array([[1, 2]])).logits is None


def test_spec_overrides(tiny: Callable[..., Path]) -> None:
    """A spec with one field changed is what the model is made of; a wrong field is named."""
    folder = tiny("qwen3", "f32")
    spec = bombus.load_spec(folder, norm_epsilon=0.5)
    loaded = bombus.load_model(folder, spec=spec)
    assert loaded.spec.norm_epsilon == 0.5
    plain = bombus.load_model(folder)
    tokens = np.array([[1, 2, 3]])
    difference = loaded.model.apply(loaded.params, tokens).logits - plain.model.apply(plain.params, tokens).logits
    assert float(jnp.abs(difference).max()) > 0.1
    with pytest.raises(
        bombus.SpecError, match=r"spec field 'norm_eps': does not exist. The closest are 'norm_epsilon'"
    ):
        bombus.load_spec(folder, norm_eps=0.5)
    with pytest.raises(TypeError, match="give spec or architecture, not both"):
        bombus.load_model(folder, spec=spec, architecture="base")


def test_the_report_adds_up(tiny: Callable[..., Path]) -> None:
    """Totals are the arrays' sizes; the table folds blocks of equal treatment; HTML holds the same rows."""
    loaded = bombus.load_model(tiny("qwen3", scales="bf16"), preserve_source_types=True)
    report, values = loaded.report, flat(loaded.params)
    assert report.nbytes == sum(value.nbytes for value in values.values())
    size = (tiny("qwen3", scales="bf16") / "model.safetensors").stat().st_size
    assert size - 10_000 < report.file_nbytes < size
    count = sum(value.size for path, value in values.items() if not path.endswith("scale_inv"))
    text = str(report)
    assert f"{count:,} parameters" in text
    assert repr(report) == text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("decoder.blocks.{0..1}.ffn.gate.kernel")]
    assert row[1:] == [
        *("model.layers.{n}.mlp.gate_proj.weight", "f8_e4m3fn(scale=bf16)"),
        *("f8_e4m3fn(scale=bf16)[320,", "192]", "bf16", "keep"),
        # Two blocks, each with 320 * 192 codes and six scales.
        *("122.90", "kB"),
    ]
    assert repr(loaded).startswith(f"LoadedModel(Qwen3Spec, {count:,} parameters, ")
    assert report._repr_html_().count("<tr>") == len(text.splitlines()) - 2


def test_loading_shows_no_bar_when_told_so(tiny: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """progress=False prints nothing."""
    bombus.load_model(tiny("qwen3"), progress=False)
    assert capfd.readouterr() == ("", "")
