"""generation_config.json: what is read and what is written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bombus
from bombus import GenerationConfig
from bombus.loader.generation_config import read_generation_config
from bombus.loader.repository import open_repository

INF = math.inf
# Of every setting its name in a file, a value there, the value that is kept of it, and the default.
FIELDS: dict[str, tuple[str, Any, Any, Any]] = {
    "do_sample": ("do_sample", True, True, False),
    "temperature": ("temperature", 0.6, 0.6, 1.0),
    "top_k": ("top_k", 20.0, 20, 50),
    "top_p": ("top_p", 0.95, 0.95, 1.0),
    "min_p": ("min_p", 1, 1.0, 0.0),
    "typical_p": ("typical_p", 0.2, 0.2, 1.0),
    "epsilon_cutoff": ("epsilon_cutoff", 3e-4, 3e-4, 0.0),
    "eta_cutoff": ("eta_cutoff", 2e-3, 2e-3, 0.0),
    "repetition_penalty": ("repetition_penalty", 1.05, 1.05, 1.0),
    "presence_penalty": ("presence_penalty", -2, -2.0, 0.0),
    "frequency_penalty": ("frequency_penalty", 0.5, 0.5, 0.0),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 3, 3, 0),
    "max_new_tokens": ("max_new_tokens", 10**400, 10**400, None),
    "max_length": ("max_length", 4096, 4096, None),
    "min_new_tokens": ("min_new_tokens", 2, 2, 0),
    "min_length": ("min_length", 56, 56, 0),
    "suppress_tokens": ("suppress_tokens", [7, 5], (7, 5), ()),
    "begin_suppress_tokens": ("begin_suppress_tokens", 220, (220,), ()),
    "forced_bos_token_id": ("forced_bos_token_id", [0], 0, None),
    "forced_eos_token_id": ("forced_eos_token_id", 2, 2, None),
    "forced_tokens": ("forced_decoder_ids", [[1, 50], [2, None], [3, 51]], ((0, 50), (2, 51)), ()),
    "bad_words_ids": ("bad_words_ids", [[1], [2, 3]], ((1,), (2, 3)), ()),
    "sequence_bias": ("sequence_bias", [[[1, 2], -5], [[3], -INF]], (((1, 2), -5.0), ((3,), -INF)), ()),
    "logit_bias": ("logit_bias", {"50": 2, "7": -INF}, ((50, 2.0), (7, -INF)), ()),
    "eos_token_ids": ("eos_token_id", [151645, 151643], (151645, 151643), ()),
    "bos_token_id": ("bos_token_id", 1, 1, None),
    "pad_token_id": ("pad_token_id", [8, 9], 8, None),
    "stop_strings": ("stop_strings", "User:", ("User:",), ()),
    "penalty_alpha": ("penalty_alpha", 0.6, 0.6, 0.0),
    "num_beams": ("num_beams", 4, 4, 1),
    "length_penalty": ("length_penalty", -1, -1.0, 1.0),
    "early_stopping": ("early_stopping", "never", "never", False),
    "num_return_sequences": ("num_return_sequences", 1, 1, 1),
    "prompt_lookup_num_tokens": ("prompt_lookup_num_tokens", 10, 10, 0),
    "max_matching_ngram_size": ("max_matching_ngram_size", 3, 3, 2),
}


def written(config: GenerationConfig) -> GenerationConfig:
    """What is read of what is written."""
    return GenerationConfig.from_hf(json.loads(json.dumps(config.to_hf())))


def test_every_setting_is_in_the_table() -> None:
    assert [field.name for field in dataclasses.fields(GenerationConfig)] == [*FIELDS, "unsupported"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_read_and_written(name: str) -> None:
    """The value of a file; absent and null the default; and as it was, when it is written."""
    field, value, kept, default = FIELDS[name]
    found = GenerationConfig.from_hf({field: value})
    assert getattr(found, name) == kept
    assert type(getattr(found, name)) is type(kept)
    assert dataclasses.replace(found, **{name: default}) == GenerationConfig()
    assert GenerationConfig.from_hf({field: None}) == GenerationConfig.from_hf({}) == GenerationConfig()
    assert getattr(GenerationConfig(), name) == default
    assert set(found.to_hf()) == {"do_sample", "eos_token_id"} | ({field} if kept != default else set())
    assert written(found) == found
    assert hash(written(found)) == hash(found)


def test_all_fields_together() -> None:
    config = {field: value for field, value, _, _ in FIELDS.values()} | {"num_return_sequences": 3, "top_h": 0.4}
    found = GenerationConfig.from_hf(config)
    expected = {name: kept for name, (_, _, kept, _) in FIELDS.items()} | {"num_return_sequences": 3}
    assert found == GenerationConfig(**expected, unsupported=("top_h=0.4",))
    assert written(found) == found


def test_what_is_written() -> None:
    """Always whether to sample and the ends; no field that is null, padding included."""
    assert GenerationConfig().to_hf() == {"do_sample": False, "eos_token_id": []}
    config = GenerationConfig(temperature=0.5, eos_token_ids=(2,), forced_tokens=((0, 5),), logit_bias=((3, -INF),))
    assert config.to_hf() == {
        "do_sample": False,
        "eos_token_id": [2],
        "temperature": 0.5,
        "forced_decoder_ids": [[1, 5]],
        "logit_bias": {"3": -INF},
    }
    assert '"3": -Infinity' in json.dumps(config.to_hf())


def test_a_saved_model_keeps_its_settings(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = GenerationConfig.from_hf({field: value for field, value, _, _ in FIELDS.values()})
    config = dataclasses.replace(config, unsupported=("guidance_scale=1.5",))
    bombus.save_model(dataclasses.replace(bombus.load_model(tiny("qwen3")), generation_config=config), tmp_path)
    assert bombus.load_generation_config(tmp_path) == config
    bombus.save_model(bombus.load_model(tiny("qwen3")), tmp_path)
    assert "pad_token_id" not in json.loads((tmp_path / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            {
                "bos_token_id": 151643,
                "do_sample": True,
                "eos_token_id": [151645, 151643],
                "pad_token_id": 151643,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
                "transformers_version": "4.51.0",
            },
            GenerationConfig(
                do_sample=True,
                temperature=0.6,
                top_k=20,
                top_p=0.95,
                eos_token_ids=(151645, 151643),
                bos_token_id=151643,
                pad_token_id=151643,
            ),
            id="Qwen3",
        ),
        pytest.param(
            {
                "bos_token_id": 128000,
                "do_sample": True,
                "eos_token_id": [128001, 128008, 128009],
                "temperature": 0.6,
                "top_p": 0.9,
                "transformers_version": "4.42.3",
            },
            GenerationConfig(
                do_sample=True,
                temperature=0.6,
                top_p=0.9,
                eos_token_ids=(128001, 128008, 128009),
                bos_token_id=128000,
            ),
            id="Llama 3.1",
        ),
        pytest.param(
            {
                "bos_token_id": 2,
                "cache_implementation": "hybrid",
                "do_sample": True,
                "eos_token_id": [1, 106],
                "pad_token_id": 0,
                "top_k": 64,
                "top_p": 0.95,
                "transformers_version": "4.50.0.dev0",
            },
            GenerationConfig(
                do_sample=True, top_k=64, top_p=0.95, eos_token_ids=(1, 106), bos_token_id=2, pad_token_id=0
            ),
            id="Gemma 3",
        ),
        pytest.param(
            {
                "bos_token_id": 199998,
                "do_sample": True,
                "eos_token_id": [200002, 199999, 200012],
                "pad_token_id": 199999,
                "transformers_version": "4.55.0.dev0",
            },
            GenerationConfig(
                do_sample=True, eos_token_ids=(200002, 199999, 200012), bos_token_id=199998, pad_token_id=199999
            ),
            id="gpt-oss",
        ),
        pytest.param(
            {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.36.0"},
            GenerationConfig(eos_token_ids=(2,), bos_token_id=1),
            id="Mistral",
        ),
        pytest.param(
            {
                "_from_model_config": True,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.95,
                "transformers_version": "4.39.3",
            },
            GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, eos_token_ids=(1,), bos_token_id=0),
            id="DeepSeek-R1",
        ),
    ],
)
def test_released_files(config: dict[str, Any], expected: GenerationConfig) -> None:
    """The fields of the models' own files."""
    found = GenerationConfig.from_hf(config)
    assert found == expected
    assert written(found) == found


def test_without_do_sample_it_is_greedy() -> None:
    """As in transformers, what a file says of sampling is kept, for a call that samples."""
    found = GenerationConfig.from_hf({"temperature": 0.6, "top_k": 20, "eos_token_id": 2})
    assert found == GenerationConfig(do_sample=False, temperature=0.6, top_k=20, eos_token_ids=(2,))


def test_real_files(data: Path) -> None:
    """Qwen2's file asks for a repetition penalty; stories260K's names two eos ids."""
    found = bombus.load_generation_config(data / "qwen2-tokenizer")
    assert (found.repetition_penalty, found.unsupported) == (1.1, ())
    assert found.eos_token_ids == (151645, 151643)
    assert bombus.load_generation_config(data / "stories260K-hf").eos_token_ids == (1, 2)


def test_the_fallback_is_config_json(tmp_path: Path) -> None:
    """A repository without the file is greedy and ends at config.json's eos."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.3, "bos_token_id": 4}))
    assert bombus.load_generation_config(tmp_path) == GenerationConfig(eos_token_ids=(7,), bos_token_id=4)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_end_in_a_file_is_checked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": 300}))
    repository = open_repository(tmp_path)
    assert read_generation_config(repository, vocab_size=301).eos_token_ids == (300,)
    assert read_generation_config(repository).eos_token_ids == (300,)
    with pytest.raises(bombus.SpecError, match=r"ids below the vocabulary of 300, found 300\)"):
        read_generation_config(repository, vocab_size=300)


def test_fields_that_change_the_text_are_reported() -> None:
    """Only where they are not what does nothing; and written, so that a copy is refused too."""
    nothing = {
        "guidance_scale": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "renormalize_logits": False,
        "token_healing": False,
        "is_assistant": False,
        "encoder_repetition_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0,
        "constraints": None,
        "use_cache": False,
        "remove_invalid_values": True,
        "num_assistant_tokens": 20,
        "of_another_program": 3,
    }
    assert GenerationConfig.from_hf(nothing).unsupported == ()
    something = {
        "encoder_repetition_penalty": 1.5,
        "encoder_no_repeat_ngram_size": 2,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "guidance_scale": 1.5,
        "top_h": 0.4,
        "exponential_decay_length_penalty": [5, math.inf],
        "renormalize_logits": True,
        "token_healing": True,
        "watermarking_config": {"bias": 2.5},
        "constraints": [],
        "force_words_ids": [[3]],
        "dola_layers": "low",
        "max_time": 1.0,
        "is_assistant": True,
        "assistant_early_exit": 4,
        "assistant_ensemble_weight": 0.5,
        "forced_eos_token_id": [1, 2],
    }
    found = GenerationConfig.from_hf(something)
    assert found.unsupported == tuple(f"{name}={json.dumps(value)}" for name, value in something.items())
    assert found.forced_eos_token_id is None
    assert "guidance_scale=1.5" in found.unsupported
    assert written(found) == found
