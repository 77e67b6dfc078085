"""Every convention of low-precision weights: codes and scales kept, values by float64, logits, saved and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy_decoder
import pytest
from convention_cases import CASES, LAYER, SIZES
from conventions import Written, write_convention

import bombus
from bombus.models.model import flat

TOKENS = np.array([[5, 0, 31, 7, 19]], np.int32)
_NAMES = {
    **{f"self_attn.{name[0]}_proj": f"self_attention.{name}" for name in ("query", "key", "value", "output")},
    **{
        f"mlp.{name}_proj": f"ffn.{ours}"
        for name, ours in (("gate", "gate"), ("up", "intermediate"), ("down", "output"))
    },
}
OURS = {f"{LAYER}{theirs}": f"decoder.blocks.0.{ours}.kernel" for theirs, ours in _NAMES.items()}
OURS["model.embed_tokens"] = "embedder.token_embedding.embedding"


class Case(NamedTuple):
    """A checkpoint, and what is loaded of it with the types of the file."""

    written: Written
    kept: bombus.LoadedModel


@pytest.fixture(scope="module")
def written(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """`written(name)`: the checkpoint of a case, made and loaded once. Read only."""

    @cache
    def make(name: str) -> Case:
        convention = CASES[name]
        # Llama where there is something that does not need a head size of its own: these two differ in their norms.
        architecture = "llama" if convention.base == "eights" else "qwen3"
        base = tiny(architecture, "f32", num_blocks=1, vocab_size=34, **SIZES[convention.base])
        made = write_convention(convention, base, tmp_path_factory.mktemp("convention"))
        return Case(made, bombus.load_model(made.folder, preserve_source_types=True))

    return make


def held(loaded: bombus.LoadedModel, layer: str) -> dict[str, np.ndarray]:
    """The arrays of a layer's weight: `codes` and the parts."""
    params, path = flat(loaded.params), OURS[layer]
    shape, format = loaded.model.shapes[path], loaded.model.formats[path]
    parts = {part: params[f"{path.rpartition('.')[0]}.{part}"] for part in format.parts(shape)}
    return {name: np.asarray(array) for name, array in {"codes": params[path], **parts}.items()}


def same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


@pytest.mark.parametrize("name", CASES)
def test_codes_and_scales_are_those_of_the_file(name: str, written: Callable[[str], Case]) -> None:
    """In every bit; only the scale of an nvfp4 tensor of modelopt's is its reciprocal in float32."""
    checkpoint, loaded = written(name)
    formats = {path: str(format) for path, format in loaded.model.formats.items()}
    low = {OURS[layer]: CASES[name].maker(layer).format for layer in checkpoint.made}
    assert {path: format for path, format in formats.items() if format != "f32"} == low
    for layer, made in checkpoint.made.items():
        arrays = held(loaded, layer)
        assert arrays.keys() == made.arrays.keys()
        for part, array in made.arrays.items():
            assert same_bytes(arrays[part], array), (layer, part)
    assert {entry.action for entry in loaded.report.plan.entries} == {"keep"}
    assert loaded.report.plan.unused == ()


@pytest.mark.parametrize("name", CASES)
def test_the_values_are_those_of_float64(name: str, written: Callable[[str], Case]) -> None:
    """Dequantized while loading, to float32: three roundings at most, of 6e-8 each."""
    checkpoint, _ = written(name)
    loaded = bombus.load_model(checkpoint.folder, policy="f32")
    assert {str(format) for format in loaded.model.formats.values()} == {"f32"}
    params = flat(loaded.params)
    for layer, made in checkpoint.made.items():
        np.testing.assert_allclose(np.asarray(params[OURS[layer]]), made.values, rtol=2e-7, atol=0, err_msg=layer)


@pytest.mark.parametrize("name", {case.in_memory: name for name, case in CASES.items()}.values())
def test_the_logits_are_those_of_the_values(name: str, written: Callable[[str], Case]) -> None:
    """Of the weights as they are stored, against float64 NumPy with the float32 values; logits reach 3."""
    checkpoint, loaded = written(name)
    expected = numpy_decoder.forward(checkpoint.plain, TOKENS[0])
    # Not as one program: the operations of the next case are compiled already.
    logits = np.asarray(loaded.model.apply(loaded.params, TOKENS).logits)[0]
    np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_loads_again(name: str, written: Callable[[str], Case], tmp_path: Path) -> None:
    """Under other names maybe, but with the same formats and the same bytes."""
    _, loaded = written(name)
    bombus.save_model(loaded, tmp_path)
    again = bombus.load_model(tmp_path, preserve_source_types=True)
    assert {p: str(f) for p, f in again.model.formats.items()} == {p: str(f) for p, f in loaded.model.formats.items()}
    before, after = flat(loaded.params), flat(again.params)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert same_bytes(np.asarray(value), np.asarray(after[path])), path


@pytest.mark.parametrize("name", CASES)
def test_scales_of_activations_are_reported(name: str, written: Callable[[str], Case]) -> None:
    """By tensor and with their values, in the report of a load; the plan, which reads nothing, has only their names."""
    checkpoint, loaded = written(name)
    report, plan = loaded.report, bombus.load_plan(checkpoint.folder)
    assert set(report.activation_scales) == set(plan.plan.activation_scales) == set(checkpoint.scales)
    for tensor, scale in checkpoint.scales.items():
        assert same_bytes(report.activation_scales[tensor], scale)
    written_out = json.loads(json.dumps(report.to_json()))["activation_scales"]
    assert written_out == {tensor: scale.astype(float).tolist() for tensor, scale in checkpoint.scales.items()}
    assert plan.to_json()["activation_scales"] == dict.fromkeys(checkpoint.scales)
    said = [line for line in str(report).splitlines() if line.startswith("not quantized here")]
    assert len(said) == bool(checkpoint.scales)


def test_the_report_says_which_scales_are_not_used(written: Callable[[str], Case]) -> None:
    first = f"{LAYER}mlp.down_proj.input_scale"
    for name, more in (("fp8, blocks, static", " and 6 more"), ("fp8, AutoFP8", " and 7 more")):
        note = f"not quantized here, so their scales are not used: activations or cache ({first}{more})"
        report = written(name).kept.report
        assert note in str(report).splitlines()
        assert f"<p>{note}</p>" in report._repr_html_()


@pytest.mark.parametrize("name", CASES)
def test_scales_and_codes_of_the_cases_differ(name: str, written: Callable[[str], Case]) -> None:
    """Or what is in the wrong place could go unseen."""
    made = written(name).written.made.values()
    scales = {float(scale) for weight in made for scale in weight.arrays["scale_inv"].reshape(-1)}
    # Of bf16 and of powers of two there are not so many.
    assert len(scales) >= min(4, sum(weight.arrays["scale_inv"].size for weight in made) // 2)
    bits = np.concatenate([weight.arrays["codes"].view(np.uint8).reshape(-1) for weight in made])
    # Of float8 all but NaN and infinities; two codes a byte are nearly any byte.
    assert len(np.unique(bits)) >= 220
