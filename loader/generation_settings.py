"""Settings of generation by their names: what a call may give, and what transformers has and nothing here does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from bombus.policies.errors import Problem, closest

# Fields of transformers that change the text at any other value, and that nothing here implements. Absent and null
# are the same as what is named here. Those that change only the speed or what comes beside the text are not here.
_NOT_IMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "guidance_scale": (1.0,),
    "top_h": (),
    "exponential_decay_length_penalty": (),
    "renormalize_logits": (False,),
    "token_healing": (False,),
    "watermarking_config": (),
    "constraints": (),
    "force_words_ids": (),
    "dola_layers": (),
    "max_time": (),
    "is_assistant": (False,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
}
# What a call says by another name than a file.
_OTHER_NAMES = {
    "eos_token_id": "stop_token_ids",
    "eos_token_ids": "stop_token_ids",
    "forced_decoder_ids": "forced_tokens",
}


class Settings(TypedDict, total=False):
    """What a call may set. None is the same as not given; mappings and lists are taken as well as tuples."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    suppress_tokens: int | Iterable[int] | None
    begin_suppress_tokens: int | Iterable[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    forced_tokens: Mapping[int, int] | Iterable[tuple[int, int]] | None
    bad_words_ids: Iterable[Iterable[int]] | None
    sequence_bias: Mapping[tuple[int, ...], float] | Iterable[tuple[Iterable[int], float]] | None
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None
    stop_token_ids: int | Iterable[int] | None
    bos_token_id: int | None
    pad_token_id: int | None
    stop_strings: str | Iterable[str] | None
    penalty_alpha: float | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    num_return_sequences: int | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None


def not_implemented(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A file's fields without those that are null, and as name=JSON those that change the text and are not done."""
    config = {name: value for name, value in config.items() if value is not None}
    found = {name: config[name] for name, kept in _NOT_IMPLEMENTED.items() if config.get(name) not in (None, *kept)}
    last = config.get("forced_eos_token_id")
    if isinstance(last, list) and len(last) > 1:
        found["forced_eos_token_id"] = config.pop("forced_eos_token_id")
    return config, tuple(f"{name}={json.dumps(value)}" for name, value in found.items())


def unknown_setting(name: str, known: Iterable[str]) -> Problem:
    """What to say about a setting of a call that is not one of the known ones."""
    if name in _OTHER_NAMES:
        return Problem(subject=name, message="is the name in a file", remedy=f"use {_OTHER_NAMES[name]}")
    if name in _NOT_IMPLEMENTED:
        return Problem(subject=name, message="is not implemented")
    return Problem(subject=name, message="is not a setting", remedy=closest(name, known))
