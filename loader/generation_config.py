"""generation_config.json: how a model's authors want it sampled, and which tokens end a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Unpack

from bombus.loader.json_file import read_json
from bombus.loader.repository import HubOptions, Repository, open_repository
from bombus.policies.errors import Problem, SpecError

# Fields that would change the text at any other value, and that nothing here implements. Absent and null are the
# same as the first.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Defaults of a repository. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off.

    unsupported: fields of the file that would change the text and that are refused when text is generated.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    unsupported: tuple[str, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, vocab_size: int | None = None) -> GenerationConfig:
        """From the fields of generation_config.json, where `do_sample` (default false) decides about sampling.

        Raises SpecError that lists every field out of range; with vocab_size also ids that end a text and that a
        model of so many tokens never gives.
        """
        problems: list[Problem] = []

        def refuse(name: str, expected: str) -> None:
            found = repr(config[name])[:80]
            problems.append(
                Problem(subject=f"field {name!r}", message="is out of range", expected=expected, found=found)
            )

        def number(name: str, default: float, low: float, high: float) -> float:
            value = config.get(name)
            if value is None:
                return default
            whole = isinstance(low, int)
            valid = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            if not valid or (whole and isinstance(value, float) and not value.is_integer()):
                what = "an integer" if whole else "a number"
                refuse(name, f"{what} from {low}" if high == math.inf else f"{what} from {low} to {high}")
                return default
            return value

        sample = config.get("do_sample")
        if not isinstance(sample, bool | None):
            refuse("do_sample", "true or false")
        # transformers' own defaults, which a file that only says do_sample means.
        temperature = number("temperature", 1.0, 0.0, 1e4)
        top_k, top_p = number("top_k", 50, 0, 2**31 - 1), number("top_p", 1.0, 0.0, 1.0)
        longest = number("max_new_tokens", math.inf, 1, math.inf)
        ids = {name: _token_ids(name, config.get(name), problems) for name in ("eos_token_id", "pad_token_id")}
        if vocab_size is not None and any(token >= vocab_size for token in ids["eos_token_id"]):
            # Not those of the padding, which models that are never padded have past the end.
            refuse("eos_token_id", f"ids below the vocabulary of {vocab_size}")
        if problems:
            raise SpecError(problems, where="generation_config.json")
        return cls(
            temperature=float(temperature) if sample else 0.0,
            top_k=int(top_k) if sample else 0,
            top_p=float(top_p) if sample else 1.0,
            max_new_tokens=None if longest == math.inf else int(longest),
            eos_token_ids=ids["eos_token_id"],
            pad_token_id=next(iter(ids["pad_token_id"]), None),
            unsupported=tuple(
                f"{name}={config[name]!r}" for name, kept in _ONLY.items() if config.get(name) not in (None, *kept)
            ),
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of generation_config.json; `from_hf` reads them back to an equal config."""
        config: dict[str, Any] = {"do_sample": self.temperature > 0, "eos_token_id": list(self.eos_token_ids)}
        if self.temperature > 0:
            config |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        if self.pad_token_id is not None:
            config["pad_token_id"] = self.pad_token_id
        if self.max_new_tokens is not None:
            config["max_new_tokens"] = self.max_new_tokens
        return config


def load_generation_config(repo: str | PathLike[str], **hub: Unpack[HubOptions]) -> GenerationConfig:
    """The repository's GenerationConfig; without generation_config.json, greedy with the eos of config.json."""
    return read_generation_config(open_repository(repo, **hub))


def read_generation_config(repository: Repository, *, vocab_size: int | None = None) -> GenerationConfig:
    """See load_generation_config; vocab_size is that of the model, see GenerationConfig.from_hf."""
    path = repository.find("generation_config.json")
    if path is not None:
        return GenerationConfig.from_hf(read_json(path), vocab_size=vocab_size)
    path = repository.find("config.json")
    config = {} if path is None else read_json(path)
    ids = {key: config.get(key) for key in ("eos_token_id", "pad_token_id")}
    return GenerationConfig.from_hf(ids, vocab_size=vocab_size)


def _token_ids(name: str, value: Any, problems: list[Problem]) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        problems.append(
            Problem(subject=f"field {name!r}", message="must be a token id or a list of them", found=repr(value))
        )
        return ()
    return tuple(ids)
