"""The arrays that make_sampling builds of a generation config."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bombus
from bombus.generation.sampling import Sampling, make_sampling

INF = np.inf


def make(*, stop_ids: tuple[int, ...] = (), max_new_tokens: int = 3, seeds: Any = (0, 0), **settings: Any) -> Sampling:
    return make_sampling(
        bombus.GenerationConfig(**settings),
        batch=2,
        vocab_size=8,
        steps=4,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        seeds=seeds,
    )


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("temperature", 0.7, "temperature"),
        ("top_k", 12, "top_k"),
        ("top_p", 0.9, "top_p"),
        ("min_p", 0.1, "min_p"),
        ("typical_p", 0.8, "typical_p"),
        ("epsilon_cutoff", 0.01, "epsilon_cutoff"),
        ("eta_cutoff", 0.02, "eta_cutoff"),
        ("repetition_penalty", 1.3, "repetition_penalty"),
        ("presence_penalty", 0.4, "presence_penalty"),
        ("frequency_penalty", -0.4, "frequency_penalty"),
        ("no_repeat_ngram_size", 3, "no_repeat_ngram"),
        ("min_new_tokens", 5, "min_new_tokens"),
        ("min_length", 9, "min_length"),
    ],
)
def test_every_row_has_the_number(setting: str, value: float, name: str) -> None:
    """In the same type as when it is off, so that the program is the same."""
    off, on = make(do_sample=True), make(do_sample=True, **{setting: value})
    array = getattr(on, name)
    np.testing.assert_array_equal(array, np.full(2, value, array.dtype))
    assert array.dtype == (np.int32 if isinstance(value, int) else np.float32)
    for field, other in vars(on).items():
        assert (other.shape, other.dtype) == (getattr(off, field).shape, getattr(off, field).dtype)
        assert field == name or np.array_equal(other, getattr(off, field))


def test_without_sampling_the_temperature_is_zero() -> None:
    np.testing.assert_array_equal(make(temperature=0.7).temperature, [0, 0])
    np.testing.assert_array_equal(make(temperature=0.0, do_sample=True).temperature, [0, 0])


def test_a_seed_per_row_is_32_bits() -> None:
    np.testing.assert_array_equal(make(seeds=[-1, 2**32 + 7]).seed, [2**32 - 1, 7])
    assert make().seed.dtype == np.uint32


def test_biases_of_single_tokens_are_one_array() -> None:
    """Added up; a suppressed token stays so whatever else is said of it; a stop id is no bad word."""
    sampling = make(
        stop_ids=(6,),
        logit_bias=((1, 0.5), (2, 4.0), (3, 1.0)),
        sequence_bias=(((1,), 0.25), ((4,), 2.0), ((4,), 3.0)),
        suppress_tokens=(2,),
        begin_suppress_tokens=(0, 7),
        bad_words_ids=((5,), (6,), (3,)),
    )
    np.testing.assert_array_equal(sampling.bias_V, [0, 0.75, -INF, -INF, 3.0, -INF, 0, 0])
    np.testing.assert_array_equal(sampling.first_bias_V, [-INF, 0, 0, 0, 0, 0, 0, -INF])
    assert (sampling.sequences_WM == -1).all()
    assert sampling.sequences_WM.shape == (16, 8)


def test_sequences_are_aligned_on_the_right() -> None:
    """Bad words after biased sequences; a sequence that is both has both; a longer one takes a larger bucket."""
    sampling = make(sequence_bias=(((1, 2), 0.5), ((3, 4, 5), -1.0)), bad_words_ids=((1, 2), (7, 7, 7)))
    np.testing.assert_array_equal(sampling.sequences_WM[:4, -3:], [[-1, 1, 2], [3, 4, 5], [-1, 1, 2], [7, 7, 7]])
    assert (np.array(sampling.sequences_WM)[:4, :-3] == -1).all()
    assert (np.array(sampling.sequences_WM)[4:] == -1).all()
    np.testing.assert_array_equal(sampling.sequence_bias_W, [0.5, -1, -INF, -INF] + [0] * 12)
    longer = make(bad_words_ids=(*((1, token % 8, token // 8) for token in range(17)), (1,) * 9))
    assert longer.sequences_WM.shape == (32, 16)
    np.testing.assert_array_equal(longer.sequences_WM[17], [-1] * 7 + [1] * 9)
    assert make(bad_words_ids=((1,) * 8,) * 16).sequences_WM.shape == (16, 8)


def test_forced_tokens_by_step() -> None:
    """The end is forced at the last token that is wanted; what lies past the room is never written."""
    assert make().forced_N.tolist() == [-1, -1, -1, -1]
    assert make(forced_tokens=((0, 5), (9, 2))).forced_N.tolist() == [5, -1, -1, -1]
    assert make(forced_tokens=((2, 5),), forced_eos_token_id=7).forced_N.tolist() == [-1, -1, 7, -1]
    assert make(forced_eos_token_id=0, max_new_tokens=4).forced_N.tolist() == [-1, -1, -1, 0]
    assert int(make().forced_bos) == -1
    assert int(make(forced_bos_token_id=0).forced_bos) == 0
    assert make(forced_bos_token_id=0).forced_bos.dtype == np.int32


def test_stop_ids_have_slots_to_spare() -> None:
    np.testing.assert_array_equal(make(stop_ids=(3, 1)).stop, [3, 1] + [-1] * 30)
    assert make(stop_ids=tuple(range(8)) * 4).stop.shape == (32,)
    assert make(stop_ids=tuple(range(8)) * 5).stop.shape == (64,)
