"""Streams and stops: pieces, cancelling, stop strings, log-probabilities, what a result says."""

from __future__ import annotations

import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def story(data: Path) -> bombus.LoadedModel:
    """A trained model, whose text has words."""
    return bombus.load_model(data / "stories260K-hf")


@pytest.fixture(scope="module")
def words(data: Path) -> bombus.Tokenizer:
    """Its tokenizer."""
    return bombus.load_tokenizer(data / "stories260K-hf")


@pytest.fixture(scope="module")
def text(story: bombus.LoadedModel, words: bombus.Tokenizer) -> str:
    """What the model writes, greedy."""
    return bombus.generate(story, words, PROMPT, max_new_tokens=60)


def test_stop_strings_are_never_shown(story: bombus.LoadedModel, words: bombus.Tokenizer, text: str) -> None:
    """A stop string in the middle of words and over several tokens ends the text before it, in a stream and at once."""
    stop = text[70:83]
    assert text.index(stop) == 70
    options = {"max_new_tokens": 60, "stop_strings": [stop, "not there"]}
    result = bombus.generate(story, words, PROMPT, return_details=True, **options)
    assert (result.text, result.finish_reason, result.stop_string) == (text[:70], "stop", stop)
    assert len(words.encode(stop)) > 2
    assert str(result) == text[:70]
    stream = bombus.generate(story, words, PROMPT, stream=True, **options)
    pieces = list(stream)
    assert "".join(pieces) == text[:70]
    assert not any(stop[:2] in piece for piece in pieces[-1:])
    assert stream.result == result


def test_stop_strings_of_one_row_leave_the_others(
    story: bombus.LoadedModel, words: bombus.Tokenizer, text: str
) -> None:
    """The rows of a batch stop each for themselves."""
    other = bombus.generate(story, words, "Tom and his dog", max_new_tokens=60)
    stop = text[40:50]
    assert stop not in other
    found = bombus.generate(
        story, words, [PROMPT, "Tom and his dog"], max_new_tokens=60, stop_strings=stop, return_details=True
    )
    assert [(row.text, row.finish_reason) for row in found] == [(text[:40], "stop"), (other, "length")]


def test_a_cancelled_stream_says_so(story: bombus.LoadedModel, words: bombus.Tokenizer, text: str) -> None:
    """From inside the loop: no more pieces, and a result with what there was."""
    stream = bombus.generate(story, words, PROMPT, max_new_tokens=60, stream=True)
    with pytest.raises(bombus.GenerationError, match=r"stream: has not ended\. Read all of its pieces, or cancel it"):
        _ = stream.result
    shown = []
    for piece in stream:
        shown.append(piece)
        if len(shown) == 2:
            stream.cancel()
    assert len(shown) == 2
    result = stream.result
    assert (result.finish_reason, result.text) == ("cancelled", "".join(shown))
    assert text.startswith(result.text)
    assert 0 < len(result.tokens) < 60
    assert list(stream) == []


def test_a_stream_is_cancelled_from_another_thread(
    story: bombus.LoadedModel, words: bombus.Tokenizer, text: str
) -> None:
    """A server's way: the loop that reads ends by itself."""
    stream = bombus.generate(story, words, PROMPT, max_new_tokens=60, stream=True)
    first = next(stream)
    other = threading.Thread(target=stream.cancel)
    other.start()
    other.join()
    assert list(stream) == []
    assert stream.result.text == first
    assert stream.result.finish_reason == "cancelled"


def test_cancelling_what_has_ended_changes_nothing(story: bombus.LoadedModel, words: bombus.Tokenizer) -> None:
    """The reason stays the first one."""
    stream = bombus.generate(story, words, PROMPT, max_new_tokens=5, stream=True)
    assert "".join(stream) == stream.result.text
    stream.cancel()
    assert stream.result.finish_reason == "length"


def test_results_count_tokens_and_time(story: bombus.LoadedModel, words: bombus.Tokenizer) -> None:
    """Prompt and new tokens, and times that fit together."""
    result = bombus.generate(story, words, PROMPT, max_new_tokens=20, return_details=True)
    assert result.prompt_tokens == len(words.encode(PROMPT))
    assert len(result.tokens) == 20
    timings = result.timings
    assert timings is not None
    assert 0 <= timings.compile_seconds <= timings.time_to_first_token <= timings.seconds
    assert timings.decode_tokens == 19
    assert timings.loop_compile_seconds >= 0
    after = timings.seconds - timings.time_to_first_token - timings.loop_compile_seconds
    assert timings.tokens_per_second == pytest.approx(19 / after)


def test_log_probabilities_are_the_models(story: bombus.LoadedModel) -> None:
    """Of every token, before temperature and penalties, with the most probable ones; float64 from a full pass."""
    prompts = [[1, 403, 407], [1, 432]]
    rows = bombus.generate_tokens(
        story,
        prompts,
        max_new_tokens=12,
        stop_token_ids=(),
        temperature=1.3,
        repetition_penalty=1.2,
        top_k=0,
        top_logprobs=3,
        seed=1,
    )
    assert len({len(set(row.tokens)) for row in rows}) >= 1
    for prompt, row in zip(prompts, rows, strict=True):
        text = prompt + row.tokens
        logits = np.asarray(jax.jit(story.model.apply)(story.params, jnp.asarray([text])).logits, np.float64)[0]
        logits = logits[len(prompt) - 1 : -1]
        logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logprobs -= logits.max(-1, keepdims=True)
        np.testing.assert_allclose(row.logprobs, logprobs[np.arange(12), row.tokens], atol=2e-4)
        assert row.top_logprobs is not None
        for found, expected in zip(row.top_logprobs, logprobs, strict=True):
            best = np.argsort(expected)[::-1][:3]
            assert list(found) == best.tolist()
            np.testing.assert_allclose(list(found.values()), expected[best], atol=2e-4)
    plain = bombus.generate_tokens(story, prompts, max_new_tokens=4, logprobs=True)
    assert all(row.top_logprobs is None and row.logprobs is not None for row in plain)
    assert bombus.generate_tokens(story, prompts, max_new_tokens=4)[0].logprobs is None


def test_users_processors_have_a_state(story: bombus.LoadedModel) -> None:
    """One that forbids the token before last, kept in its state, and a function of the history; both are seen."""

    class NotTwiceAgo:
        """-inf for the token that it saw the last time but one."""

        def init(self, batch: int, vocab_size: int) -> jax.Array:
            return jnp.full((batch, 2), -1, jnp.int32)

        def __call__(
            self, state: jax.Array, logits_BV: jax.Array, history: bombus.History
        ) -> tuple[jax.Array, jax.Array]:
            last_B = jnp.take_along_axis(
                history.tokens_BL, jnp.broadcast_to(history.length - 1, (state.shape[0], 1)), axis=1
            )
            state = jnp.concatenate((state[:, 1:], last_B), axis=1)
            banned = jnp.arange(logits_BV.shape[1])[None] == state[:, :1]
            return jnp.where(banned, -jnp.inf, logits_BV), state

    def only_some(logits_BV: jax.Array, history: bombus.History) -> jax.Array:
        assert history.tokens_BL.shape[0] == logits_BV.shape[0]
        return jnp.where(jnp.arange(logits_BV.shape[1]) < 262, -jnp.inf, logits_BV)

    options = {"max_new_tokens": 10, "stop_token_ids": ()}
    (free,) = bombus.generate_tokens(story, [[1, 300]], logit_bias={400: 50.0}, **options)
    assert set(free.tokens) == {400}
    (held,) = bombus.generate_tokens(story, [[1, 300]], logit_bias={400: 50.0}, processors=[NotTwiceAgo()], **options)
    assert held.tokens[0] == 400
    assert all(a != b for a, b in zip(held.tokens, held.tokens[2:], strict=False))
    assert held.tokens.count(400) >= 5
    (few,) = bombus.generate_tokens(story, [[1, 300]], processors=[only_some], **options)
    assert min(few.tokens) >= 262


def test_requests_about_text_need_a_tokenizer(story: bombus.LoadedModel) -> None:
    """Stop strings without one are refused, and not ignored."""
    with pytest.raises(bombus.GenerationError) as caught:
        bombus.generate_tokens(story, [[1]], stop_strings=["\n"])
    assert str(caught.value) == (
        "generate: stop_strings: are looked for in text, and generate_tokens has no tokenizer (found ['\\n']). "
        "Call generate, or pass stop_strings=()"
    )
