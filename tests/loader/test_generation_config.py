"""generation_config.json: what is read, what is refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bombus
from bombus import GenerationConfig


def test_qwen3s_file() -> None:
    """The fields of Qwen3's own generation_config.json."""
    found = GenerationConfig.from_hf(
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        }
    )
    assert found == GenerationConfig(
        temperature=0.6, top_k=20, top_p=0.95, eos_token_ids=(151645, 151643), pad_token_id=151643
    )
    assert GenerationConfig.from_hf(found.to_hf()) == found


def test_without_do_sample_it_is_greedy() -> None:
    """As in transformers, sampling fields without do_sample do nothing."""
    assert GenerationConfig.from_hf({"temperature": 0.6, "top_k": 20, "eos_token_id": 2}) == GenerationConfig(
        eos_token_ids=(2,)
    )
    assert GenerationConfig.from_hf({"do_sample": True}) == GenerationConfig(temperature=1.0, top_k=50)


def test_everything_out_of_range_is_listed() -> None:
    """NaN, a probability of 2, and ids that are no ids."""
    with pytest.raises(bombus.SpecError) as caught:
        GenerationConfig.from_hf(
            {"temperature": float("nan"), "top_p": 2, "eos_token_id": "end", "pad_token_id": -1, "do_sample": True}
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found nan)",
        "field 'top_p': is out of range (expected a number from 0.0 to 1.0, found 2)",
        "field 'eos_token_id': must be a token id or a list of them (found 'end')",
        "field 'pad_token_id': must be a token id or a list of them (found -1)",
    ]


def test_real_files(data: Path) -> None:
    """Qwen2's file asks for a repetition penalty, which is reported; stories260K's names two eos ids."""
    found = bombus.load_generation_config(data / "qwen2-tokenizer")
    assert found.unsupported == ("repetition_penalty=1.1",)
    assert found.eos_token_ids == (151645, 151643)
    assert bombus.load_generation_config(data / "stories260K-hf").eos_token_ids == (1, 2)


def test_the_fallback_is_config_json(tmp_path: Path) -> None:
    """A repository without the file is greedy and ends at config.json's eos."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.3}))
    assert bombus.load_generation_config(tmp_path) == GenerationConfig(eos_token_ids=(7,))
