"""Our settings of generation against those of transformers: names, defaults, and what each reads of the other's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import bombus
from bombus import GenerationConfig
from bombus.loader.generation_settings import not_implemented

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FILE_NAMES = {"eos_token_ids": "eos_token_id", "forced_tokens": "forced_decoder_ids"}
# What transformers does not have: the two of other programs, and Whisper's own.
OURS = {"presence_penalty", "frequency_penalty", "logit_bias", "forced_decoder_ids"}
# Without a length transformers stops at 20 tokens, prompt included, and says that nobody wants it.
OTHER_DEFAULTS = {"max_length": (None, 20)}
# Fields of transformers that change the speed, what comes beside the text, or where nothing of ours has them.
NO_TEXT = {
    *("use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("remove_invalid_values", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "decoder_start_token_id", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "speculation_type"),
    *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
}
SETTINGS = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.1,
    "typical_p": 0.9,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "repetition_penalty": 1.05,
    "no_repeat_ngram_size": 3,
    "max_new_tokens": 50,
    "min_new_tokens": 5,
    "min_length": 7,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [7],
    "forced_bos_token_id": 8,
    "forced_eos_token_id": 2,
    "bad_words_ids": [[1], [2, 3]],
    "sequence_bias": [[[1, 2], -5.0], [[3], -float("inf")]],
    "eos_token_id": [2, 3],
    "bos_token_id": 1,
    "pad_token_id": 0,
    "stop_strings": ["User:"],
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": "never",
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 10,
    "max_matching_ngram_size": 3,
}


def defaults() -> dict[str, Any]:
    """What transformers takes for a field that is None when it generates."""
    named = {name: value for name, value in vars(transformers.GenerationConfig()).items() if name[0] != "_"}
    return named | transformers.GenerationConfig._get_default_generation_params()


def off(value: Any) -> Any:
    """None where a value switches something off, as transformers spells it."""
    return None if value in ((), 0, 0.0) else value


def test_the_defaults_are_the_same() -> None:
    """In transformers what is switched off is None, or what does nothing."""
    theirs = defaults()
    for field in dataclasses.fields(GenerationConfig):
        name = FILE_NAMES.get(field.name, field.name)
        if name == "max_matching_ngram_size":
            assert (theirs[name], field.default) == (None, 2)  # The default of the candidates' generator.
        elif name in OTHER_DEFAULTS:
            assert (field.default, theirs[name]) == OTHER_DEFAULTS[name]
        elif name not in OURS | {"unsupported"}:
            assert off(field.default) == off(theirs[name]), name
            assert theirs[name] is None or type(field.default) is type(theirs[name]), name


def test_the_default_length_of_a_match_is_the_same() -> None:
    candidates = pytest.importorskip("transformers.generation.candidate_generator")
    generator = candidates.PromptLookupCandidateGenerator(max_length=20, num_output_tokens=2)
    assert generator.max_matching_ngram_size == GenerationConfig().max_matching_ngram_size


def test_every_field_of_transformers_is_read_refused_or_no_matter_of_the_text() -> None:
    ours = {FILE_NAMES.get(field.name, field.name) for field in dataclasses.fields(GenerationConfig)}
    theirs = set(defaults()) - {"transformers_version"}
    refused = {name for name in theirs - ours if not_implemented({name: "anything"})[1]}
    assert theirs - ours - refused == NO_TEXT & theirs
    assert ours - theirs == (OURS | {"unsupported"}) - theirs
    # And at transformers' own defaults nothing is refused.
    assert not_implemented(defaults())[1] == ()


def test_each_reads_the_files_of_the_other(tmp_path: Path) -> None:
    """A file of transformers, and the one that we write of it."""
    theirs = transformers.GenerationConfig(**SETTINGS)
    theirs.save_pretrained(tmp_path)
    ours = bombus.load_generation_config(tmp_path)
    for field in dataclasses.fields(GenerationConfig):
        name = FILE_NAMES.get(field.name, field.name)
        value = json.loads(json.dumps(getattr(ours, field.name)))
        assert value == SETTINGS.get(name, json.loads(json.dumps(field.default))), name
    (tmp_path / "generation_config.json").write_text(json.dumps(ours.to_hf()))
    again = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert again == theirs
