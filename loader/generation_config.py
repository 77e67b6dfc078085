"""generation_config.json: how a model's authors want it sampled, and which tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from os import PathLike
from typing import Any, Literal, Unpack

from bombus.loader import generation_kinds as kinds
from bombus.loader.generation_kinds import Kind, WrongKindError
from bombus.loader.generation_settings import not_implemented, unknown_setting
from bombus.loader.json_file import read_json
from bombus.loader.repository import HubOptions, Repository, open_repository
from bombus.policies.errors import GenerationError, Problem, SpecError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of a repository or a call: the names, defaults and meanings of transformers, as what can be hashed.

    do_sample False is greedy whatever the temperature; 0 is greedy too. Filters and penalties are off by default but
    for top_k. presence_penalty and frequency_penalty, which transformers lacks, are of the new tokens; logit_bias has
    pairs (id, bias); forced_tokens pairs (index of the new token, id). Lists and mappings become tuples.
    unsupported: fields of a file, as name=JSON, that would change the text and are refused when text is generated.
    """

    do_sample: bool = kinds.one_of(False, True, False, expected="true or false")
    temperature: float = kinds.number(1.0, 0.0, 1e4)
    top_k: int = kinds.whole(50, 0)
    top_p: float = kinds.number(1.0, 0.0, 1.0)
    min_p: float = kinds.number(0.0, 0.0, 1.0)
    typical_p: float = kinds.number(1.0, 0.0, 1.0, above=True)
    epsilon_cutoff: float = kinds.number(0.0, 0.0, 1.0, below=True)
    eta_cutoff: float = kinds.number(0.0, 0.0, 1.0, below=True)
    repetition_penalty: float = kinds.number(1.0, 0.0, 1e4, above=True)
    presence_penalty: float = kinds.number(0.0, -2.0, 2.0)
    frequency_penalty: float = kinds.number(0.0, -2.0, 2.0)
    no_repeat_ngram_size: int = kinds.whole(0, 0)
    max_new_tokens: int | None = kinds.whole(None, 1, None)
    max_length: int | None = kinds.whole(None, 1, None)
    min_new_tokens: int = kinds.whole(0, 0)
    min_length: int = kinds.whole(0, 0)
    suppress_tokens: tuple[int, ...] = kinds.token_ids()
    begin_suppress_tokens: tuple[int, ...] = kinds.token_ids()
    forced_bos_token_id: int | None = kinds.token_id()
    forced_eos_token_id: int | None = kinds.token_id()
    forced_tokens: tuple[tuple[int, int], ...] = kinds.forced()
    bad_words_ids: tuple[tuple[int, ...], ...] = kinds.words()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = kinds.sequence_biases()
    logit_bias: tuple[tuple[int, float], ...] = kinds.biases()
    eos_token_ids: tuple[int, ...] = kinds.token_ids(in_file="eos_token_id", in_call="stop_token_ids")
    # Models that are never padded have the id past the end.
    bos_token_id: int | None = kinds.token_id(drawn=False)
    pad_token_id: int | None = kinds.token_id(drawn=False, several=True)
    stop_strings: tuple[str, ...] = kinds.strings()
    penalty_alpha: float = kinds.number(0.0, 0.0, 1.0)
    num_beams: int = kinds.whole(1, 1)
    length_penalty: float = kinds.number(1.0, -1e4, 1e4)
    early_stopping: bool | Literal["never"] = kinds.one_of(
        False, True, False, "never", expected="true, false or 'never'"
    )
    num_return_sequences: int = kinds.whole(1, 1)
    prompt_lookup_num_tokens: int = kinds.whole(0, 0)
    max_matching_ngram_size: int = kinds.whole(2, 1)
    unsupported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            # Else it stays as it is, and `problems` says so.
            with suppress(WrongKindError):
                object.__setattr__(self, name, kind.freeze(getattr(self, name)))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, vocab_size: int | None = None) -> GenerationConfig:
        """From the fields of generation_config.json, where null is the same as absent.

        Raises SpecError that lists every field out of range; with vocab_size also the token ids, but those of bos
        and padding, that a model of so many tokens does not have.
        """
        config, unsupported = not_implemented(config)
        given = {
            name: config[kind.in_file or name] for name, kind in _kinds().items() if (kind.in_file or name) in config
        }
        values = {name: _kinds()[name].from_json(value) for name, value in given.items()}
        found = cls(**values, unsupported=unsupported)
        problems = found._problems(given, lambda name, kind: f"field {kind.in_file or name!r}", vocab_size)
        if problems:
            raise SpecError(problems, where="generation_config.json")
        return found

    def to_hf(self) -> dict[str, Any]:
        """The fields of generation_config.json that are not defaults; `from_hf` reads them back to an equal config.

        A bias of -inf is written as transformers does, as the -Infinity that Python's JSON knows.
        """
        config: dict[str, Any] = {"do_sample": self.do_sample, "eos_token_id": list(self.eos_token_ids)}
        for name, kind in _kinds().items():
            value = getattr(self, name)
            if value != getattr(GenerationConfig, name):
                config[kind.in_file or name] = kind.to_json(value)
        return config | {
            name: json.loads(value) for name, _, value in (text.partition("=") for text in self.unsupported)
        }

    def with_settings(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """This config with a call's settings in place of its own. See Settings; None is the same as not given.

        A temperature without do_sample says whether to sample. Raises GenerationError that lists every setting that
        is not known or out of range.
        """
        names = {kind.in_call or name: name for name, kind in _kinds().items()}
        given = {name: value for name, value in settings.items() if value is not None}
        problems = [unknown_setting(name, names) for name in given if name not in names]
        values = {names[name]: value for name, value in given.items() if name in names}
        if "temperature" in values and "do_sample" not in values:
            values["do_sample"] = kinds.is_number(values["temperature"]) and values["temperature"] > 0
        changed = replace(self, **values)
        problems += changed._problems(values, lambda name, kind: kind.in_call or name)
        if problems:
            raise GenerationError(problems, where="generate")
        return changed

    def problems(self, *, vocab_size: int | None = None) -> list[Problem]:
        """Everything that is out of range, by the names of a call; with vocab_size also ids outside a vocabulary."""
        return self._problems({}, lambda name, kind: kind.in_call or name, vocab_size)

    def _problems(
        self, given: Mapping[str, Any], subject: Callable[[str, Kind], str], vocab_size: int | None = None
    ) -> list[Problem]:
        """given: values as they were given, where they are not as they are kept."""
        found = []
        for name, kind in _kinds().items():
            value = getattr(self, name)
            shown = given.get(name, value)
            problem = kind.problem(subject(name, kind), value, shown)
            outside = [] if vocab_size is None or problem else [id for id in kind.ids(value) if id >= vocab_size]
            if outside:
                problem = Problem(
                    subject=subject(name, kind),
                    message="is out of range",
                    expected=f"ids below the vocabulary of {vocab_size}",
                    found=repr(shown) if len(repr(shown)) <= 80 else repr(outside[:5]),
                )
            found += [problem] if problem else []
        return found or list(self._contradictions(subject))

    def _contradictions(self, subject: Callable[[str, Kind], str]) -> Iterable[Problem]:
        """Settings that are in range and not together, as transformers sees it."""
        count = self.num_return_sequences
        name = subject("num_return_sequences", _kinds()["num_return_sequences"])
        if count > 1 and self.num_beams == 1 and not self.do_sample:
            yield Problem(
                subject=name,
                message="asks for one greedy text several times",
                expected="1",
                found=f"{count}",
                remedy="set do_sample, or num_beams to as many",
            )
        if count > self.num_beams > 1:
            yield Problem(
                subject=name, message="is more than num_beams", expected=f"at most {self.num_beams}", found=f"{count}"
            )
        for field in ("forced_bos_token_id", "forced_eos_token_id", "forced_tokens"):
            kind = _kinds()[field]
            both = sorted(set(kind.ids(getattr(self, field))) & set(self.suppress_tokens))
            if both:
                yield Problem(subject=subject(field, kind), message="is in suppress_tokens too", found=repr(both)[:80])


def load_generation_config(repo: str | PathLike[str], **hub: Unpack[HubOptions]) -> GenerationConfig:
    """The repository's GenerationConfig; without generation_config.json, greedy with the ids that config.json has."""
    return read_generation_config(open_repository(repo, **hub))


def read_generation_config(repository: Repository, *, vocab_size: int | None = None) -> GenerationConfig:
    """See load_generation_config; vocab_size is that of the model, see GenerationConfig.from_hf."""
    path = repository.find("generation_config.json")
    if path is not None:
        return GenerationConfig.from_hf(read_json(path), vocab_size=vocab_size)
    path = repository.find("config.json")
    config = {} if path is None else read_json(path)
    ids = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig.from_hf(ids, vocab_size=vocab_size)


@cache
def _kinds() -> dict[str, Kind]:
    """The kind of every setting, in order."""
    return {field.name: field.metadata["kind"] for field in fields(GenerationConfig) if field.metadata}
