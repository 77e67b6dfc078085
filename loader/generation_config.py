"""generation_config.json: how a model's authors want it sampled, and which tokens end a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Unpack

from bombus.loader.hub import HubOptions, Repository, open_repository, read_json
from bombus.policies.errors import Problem, SpecError

# Fields that would change the text at any other value, and that nothing here implements.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
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
    def from_hf(cls, config: Mapping[str, Any]) -> GenerationConfig:
        """From the fields of generation_config.json, where `do_sample` (default false) decides about sampling.

        Raises SpecError that lists every field out of range.
        """
        problems: list[Problem] = []

        def number(name: str, default: float, low: float, high: float) -> float:
            value = config.get(name)
            value = default if value is None else value
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                expected = f"a number from {low} to {high}"
                problems.append(
                    Problem(subject=f"field {name!r}", message="is out of range", expected=expected, found=repr(value))
                )
                return default
            return value

        sample = bool(config.get("do_sample", False))
        # transformers' own defaults, which a file that only says do_sample means.
        temperature = number("temperature", 1.0, 0.0, 1e4)
        top_k, top_p = number("top_k", 50, 0, 2**31 - 1), number("top_p", 1.0, 0.0, 1.0)
        longest = number("max_new_tokens", math.inf, 1, math.inf)
        ids = {name: _token_ids(name, config.get(name), problems) for name in ("eos_token_id", "pad_token_id")}
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


def read_generation_config(repository: Repository) -> GenerationConfig:
    """See load_generation_config."""
    path = repository.find("generation_config.json")
    if path is not None:
        return GenerationConfig.from_hf(read_json(path))
    path = repository.find("config.json")
    config = {} if path is None else read_json(path)
    return GenerationConfig.from_hf({key: config.get(key) for key in ("eos_token_id", "pad_token_id")})


def _token_ids(name: str, value: Any, problems: list[Problem]) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        problems.append(
            Problem(subject=f"field {name!r}", message="must be a token id or a list of them", found=repr(value))
        )
        return ()
    return tuple(ids)
