"""A tiny FP8 model and its tokenizer, for the tests of generation; and a counter of compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

import bombus


@pytest.fixture(scope="module")
def loaded(tiny: Callable[..., Path]) -> bombus.LoadedModel:
    """A tiny FP8 Qwen3 with its types preserved."""
    return bombus.load_model(tiny("qwen3"), preserve_source_types=True, policy={"default": {"compute": "f32"}})


@pytest.fixture(scope="module")
def tokenizer(tiny: Callable[..., Path]) -> bombus.Tokenizer:
    """Its tokenizer, whose tokens are bytes."""
    return bombus.load_tokenizer(tiny("qwen3"))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one entry for every program that XLA compiles."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
