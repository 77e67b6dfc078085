"""generation_config.json: what is read, what is refused, what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import bombus
from bombus import GenerationConfig
from bombus.loader.generation_config import read_generation_config
from bombus.loader.repository import open_repository


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


def test_an_end_that_the_model_never_gives() -> None:
    """With the size of the vocabulary: the last id is one, the next is not; padding may have any, as real files do."""
    config = {"eos_token_id": [2, 511], "pad_token_id": 512}
    found = GenerationConfig.from_hf(config, vocab_size=512)
    assert (found.eos_token_ids, found.pad_token_id) == ((2, 511), 512)
    for ids in (512, [2, 512]):
        assert GenerationConfig.from_hf({"eos_token_id": ids}).eos_token_ids[-1] == 512
        with pytest.raises(bombus.SpecError) as caught:
            GenerationConfig.from_hf({"eos_token_id": ids}, vocab_size=512)
        assert str(caught.value) == (
            "generation_config.json: field 'eos_token_id': is out of range "
            f"(expected ids below the vocabulary of 512, found {ids})"
        )


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_end_in_a_file_is_checked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": 300}))
    repository = open_repository(tmp_path)
    assert read_generation_config(repository, vocab_size=301).eos_token_ids == (300,)
    assert read_generation_config(repository).eos_token_ids == (300,)
    with pytest.raises(bombus.SpecError, match=r"ids below the vocabulary of 300, found 300\)"):
        read_generation_config(repository, vocab_size=300)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"do_sample": "false"}, "field 'do_sample': is out of range (expected true or false, found 'false')"),
        ({"do_sample": 1}, "field 'do_sample': is out of range (expected true or false, found 1)"),
        (
            {"temperature": "hot"},
            "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found 'hot",
        ),
        (
            {"temperature": True},
            "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found True)",
        ),
        (
            {"temperature": -0.1},
            "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found -0.1)",
        ),
        (
            {"temperature": math.inf},
            "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found inf)",
        ),
        ({"top_p": math.nan}, "field 'top_p': is out of range (expected a number from 0.0 to 1.0, found nan)"),
        ({"top_k": 20.5}, "field 'top_k': is out of range (expected an integer from 0 to 2147483647, found 20.5)"),
        ({"top_k": -1}, "field 'top_k': is out of range (expected an integer from 0 to 2147483647, found -1)"),
        ({"max_new_tokens": 0}, "field 'max_new_tokens': is out of range (expected an integer from 1, found 0)"),
        ({"max_new_tokens": 1.5}, "field 'max_new_tokens': is out of range (expected an integer from 1, found 1.5)"),
        (
            {"max_new_tokens": math.inf},
            "field 'max_new_tokens': is out of range (expected an integer from 1, found inf)",
        ),
        ({"eos_token_id": [1, True]}, "field 'eos_token_id': must be a token id or a list of them (found [1, True])"),
        ({"eos_token_id": 1.0}, "field 'eos_token_id': must be a token id or a list of them (found 1.0)"),
    ],
)
def test_a_field_out_of_range(config: dict[str, Any], text: str) -> None:
    with pytest.raises(bombus.SpecError) as caught:
        GenerationConfig.from_hf(config)
    assert str(caught.value).startswith(f"generation_config.json: {text}")


def test_whole_numbers_may_be_written_as_others() -> None:
    found = GenerationConfig.from_hf({"do_sample": True, "top_k": 20.0, "max_new_tokens": 10**400, "temperature": 1})
    assert (found.top_k, found.max_new_tokens, found.temperature) == (20, 10**400, 1.0)


def test_fields_that_change_the_text_are_reported() -> None:
    """Only where they are not what does nothing."""
    nothing = {
        "guidance_scale": 1.0,
        "suppress_tokens": [],
        "num_beam_groups": 1,
        "sequence_bias": {},
        "eta_cutoff": 0.0,
    }
    assert GenerationConfig.from_hf(nothing).unsupported == ()
    found = GenerationConfig.from_hf(
        {"guidance_scale": 1.5, "suppress_tokens": [1], "forced_eos_token_id": 2, "stop_strings": ["x"], "min_p": None}
    )
    assert found.unsupported == (
        "guidance_scale=1.5",
        "forced_eos_token_id=2",
        "suppress_tokens=[1]",
        "stop_strings=['x']",
    )
