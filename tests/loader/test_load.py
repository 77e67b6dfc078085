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
    assert loaded.report.to_json()["stored_bytes"]["f8_e4m3fn"] == 320 * 192
    assert np.isfinite(np.asarray(jax.jit(loaded.model.apply)(loaded.params, np.array([[1, 2, 3]])).logits)).all()


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
        *("model.layers.{n}.mlp.gate_proj.weight", "f8_e4m3fn", "f8_e4m3fn[320,", "192]", "bf16", "keep"),
        *("122.88", "kB"),
    ]
    assert repr(loaded).startswith(f"LoadedModel(Qwen3Spec, {count:,} parameters, ")
    assert report._repr_html_().count("<tr>") == len(text.splitlines()) - 2


def test_loading_shows_no_bar_when_told_so(tiny: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """progress=False prints nothing."""
    bombus.load_model(tiny("qwen3"), progress=False)
    assert capfd.readouterr() == ("", "")
