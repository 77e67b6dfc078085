"""Which way of finding tokens a config asks for, and what does not go together with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bombus.generation.beam import WHEN_FULL, WHEN_NOTHING_BETTER, WHEN_SURE, beam_search
from bombus.generation.contrastive import contrastive_search
from bombus.generation.lookup import prompt_lookup
from bombus.generation.loop import NEXT_TOKEN
from bombus.generation.processors import LogitsProcessor
from bombus.generation.state import Strategy
from bombus.loader import GenerationConfig
from bombus.policies.errors import Problem

_EARLY_STOPPING = {False: WHEN_NOTHING_BETTER, True: WHEN_FULL, "never": WHEN_SURE}


def choose_strategy(config: GenerationConfig, new_tokens: int) -> Strategy:
    """The strategy of a config without problems, for at most so many new tokens."""
    if config.num_beams > 1:
        return beam_search(config.num_beams)
    if _is_contrastive(config):
        return contrastive_search(config.top_k)
    if config.prompt_lookup_num_tokens:
        return prompt_lookup(min(config.prompt_lookup_num_tokens, new_tokens))
    return NEXT_TOKEN


def strategy_numbers(config: GenerationConfig, limits: Sequence[int]) -> dict[str, np.ndarray]:
    """What the strategy takes from Call.numbers. limits: the most new tokens of each row of the program."""
    if config.num_beams > 1:
        return {
            "length_penalty": np.asarray(config.length_penalty, np.float32),
            "early_stopping": np.asarray(_EARLY_STOPPING[config.early_stopping], np.int32),
            "limits": np.asarray(limits, np.int32),
        }
    if _is_contrastive(config):
        return {"alpha": np.asarray(config.penalty_alpha, np.float32)}
    return {"ngram": np.asarray(config.max_matching_ngram_size, np.int32)} if config.prompt_lookup_num_tokens else {}


def strategy_problems(
    config: GenerationConfig, options: Mapping[str, Any], processors: Sequence[LogitsProcessor], vocab_size: int
) -> list[Problem]:
    """What the config's strategy cannot be together with. options: of the call, besides settings."""
    asked = {
        "num_beams": config.num_beams > 1,
        "penalty_alpha": _is_contrastive(config),
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens > 0,
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    problems = []
    if len(names) > 1:
        found = ", ".join(f"{name}={getattr(config, name)}" for name in names)
        problem = Problem(
            subject=" and ".join(names), message="ask for different searches", expected="one of them", found=found
        )
        problems.append(problem)
    if not asked["num_beams"]:
        return problems

    def refuse(subject: str, refused: bool, message: str, remedy: str) -> None:
        if refused:
            found = f"num_beams={config.num_beams}"
            problems.append(Problem(subject=subject, message=message, found=found, remedy=remedy))

    refuse("do_sample", config.do_sample, "does not go with beams", "pass do_sample=False, or num_beams=1")
    refuse("stop_strings", bool(config.stop_strings), "are not looked for in beams", "pass stop_token_ids")
    logprobs = bool(options.get("logprobs") or options.get("top_logprobs"))
    refuse("logprobs", logprobs, "are not kept for beams", "use Generated.score, the score of the whole text")
    memories = jax.eval_shape(lambda: [processor.init(1, vocab_size) for processor in processors])
    remembering = bool(jax.tree.leaves(memories))
    refuse("processors", remembering, "with a memory cannot follow beams", "give functions of logits and history")
    return problems


def _is_contrastive(config: GenerationConfig) -> bool:
    """As in transformers: with one candidate it is greedy, and sampling goes before it."""
    return config.penalty_alpha > 0 and config.top_k > 1 and not config.do_sample
