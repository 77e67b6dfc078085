"""Conventions, versions and algorithms that we do not read, by the name of the field that says so: exact texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from convention_cases import CASES, SIZES, beside, gptq, hugging_face, modelopt
from conventions import write_changed

import bombus

LOOK = "Look for a BF16 or block-FP8 version of this checkpoint"
AWQ = CASES["awq"].section
Broken = Callable[..., Path]


@pytest.fixture
def broken(tiny: Callable[..., Path], tmp_path: Path) -> Broken:
    """`broken(case, section, files)`: one weight in the convention of a case, with another configuration."""

    def make(case: str, section: dict[str, Any] | None, **files: Any) -> Path:
        convention = replace(CASES[case], section=section, **files)
        base = tiny("qwen3", "f32", num_blocks=1, vocab_size=34, **SIZES[convention.base])
        return write_changed(convention, {}, base, tmp_path)

    return make


def refusal(folder: Path) -> str:
    """The text of a load that fails with one SpecError."""
    texts = set()
    for strict in (True, False):
        with pytest.raises(bombus.SpecError) as caught:
            bombus.load_model(folder, strict=strict)
        texts.add(str(caught.value))
    return texts.pop() if len(texts) == 1 else repr(texts)


METHODS = "'fp8', 'mxfp8', 'fbgemm_fp8', 'compressed-tensors', 'modelopt', 'mxfp4', 'gptq', 'awq', 'bombus'"


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("bitsandbytes", "Load the model that it was made from, with policy='int8' or 'int4'"),
        ("torchao", "Load the model that it was made from, with a policy of the same format"),
        ("quark", "Load the model that it was made from, or its compressed-tensors version"),
        ("hqq", "Load the model that it was made from, with policy='int4(group=64, zero_points)'"),
        ("gguf", "Load the Hugging Face checkpoint that it was made from"),
        ("aqlm", LOOK),
        (None, LOOK),
        (["fp8"], LOOK),
    ],
)
def test_methods_of_others_are_named(broken: Broken, method: Any, remedy: str) -> None:
    assert refusal(broken("fp8", {"quant_method": method, "load_in_4bit": True})) == (
        f"config.json: field 'quantization_config.quant_method': is not supported (expected one of {METHODS}, found "
        f"{method!r}). {remedy}"
    )


@pytest.mark.parametrize(
    ("case", "section", "field", "expected", "found"),
    [
        *(
            ("gptq", section, field, expected, found)
            for section, field, expected, found in (
                (gptq(4, 16, desc_act=True), "desc_act", "False: groups of inputs in their order", "True"),
                (gptq(3, 16), "bits", "4 or 8", "3"),
                (gptq(8, 16, sym=False), "sym", "True with 8 bits", "False"),
                (gptq(4, 16, checkpoint_format="marlin"), "checkpoint_format", "'gptq' or 'gptq_v2'", "'marlin'"),
                (gptq(4, 16, format="gptq_v3"), "format", "'gptq' or 'gptq_v2'", "'gptq_v3'"),
                (gptq(4, 0), "group_size", "a number of inputs, or -1", "0"),
                ({"quant_method": "gptq", "bits": 4}, "group_size", "a number of inputs, or -1", "None"),
            )
        ),
        *(
            ("awq", {**AWQ, **changes}, field, expected, found)
            for changes, field, expected, found in (
                ({"version": "gemv"}, "version", "'gemm'", "'gemv'"),
                ({"version": None, "format": "gemv_fast"}, "format", "'gemm'", "'gemv_fast'"),
                ({"bits": 8}, "bits", "4", "8"),
                ({"zero_point": False}, "zero_point", "True", "False"),
            )
        ),
        *(
            ("fp8", section, field, expected, found)
            for section, field, expected, found in (
                (hugging_face([128]), "weight_block_size", "two positive sizes, like [128, 128]", "[128]"),
                (hugging_face([128, 0]), "weight_block_size", "two positive sizes, like [128, 128]", "[128, 0]"),
                (
                    hugging_face([128, 128], activation_scheme="token"),
                    "activation_scheme",
                    "'dynamic' or 'static'",
                    "'token'",
                ),
                (hugging_face([128, 128], expert_dtype="fp4"), "expert_dtype", "'fp8'", "'fp4'"),
            )
        ),
    ],
)
def test_configurations_that_are_not_supported_name_their_field(
    broken: Broken, case: str, section: dict[str, Any], field: str, expected: str, found: str
) -> None:
    assert refusal(broken(case, section)) == (
        f"config.json: field 'quantization_config.{field}': is not supported (expected {expected}, found {found}). "
        f"{LOOK}"
    )


ALGORITHMS = "FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, MXFP8, NVFP4, W4A16_NVFP4, MIXED_PRECISION"


@pytest.mark.parametrize("algorithm", ["NVFP4_AWQ", "W4A8_AWQ", "INT4_AWQ", None, 8])
def test_algorithms_of_modelopt_that_are_not_known_are_named(broken: Broken, algorithm: Any) -> None:
    """Awq's weights have factors for their inputs beside them."""
    said = f"is not supported (expected one of {ALGORITHMS}, found {algorithm!r}). {LOOK}"
    folder = broken("modelopt, NVFP4", modelopt(algorithm))
    assert refusal(folder) == f"config.json: field 'quantization_config.quant_algo': {said}"
    folder = broken("modelopt, NVFP4", None, files=beside(algorithm))
    assert refusal(folder) == f"hf_quant_config.json: field 'quantization.quant_algo': {said}"


def test_a_file_of_modelopt_that_is_no_object_is_refused(broken: Broken) -> None:
    folder = broken("modelopt, NVFP4", None, files={"hf_quant_config.json": []})
    assert refusal(folder) == f"{folder}/hf_quant_config.json: file: must hold a JSON object (found [])"
