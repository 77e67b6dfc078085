"""Rotary frequencies, and the ways to stretch them over more positions than a model was first trained with.

All are computed in float32 from the base `theta` and the number of rotated dimensions `size`; R = size/2 pairs.
A scaling with `length` (the largest position of a call, plus one; traced) may choose other frequencies by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


def plain_frequencies(theta: float, size: int) -> np.ndarray:
    """The angle per position of each pair without scaling, theta^(-2i/size), (R,) in float32."""
    return (1.0 / _powers(theta, size)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every position counts 1/`factor` (Chen et al. 2023, "Extending context window by positional interpolation")."""

    factor: float

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        return 1.0

    def frequencies(self, theta: float, size: int, length: jax.Array | int | None) -> np.ndarray:
        """(R,) in float32; the same for every length."""
        return (plain_frequencies(theta, size) / np.float32(self.factor)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """A base that grows with the length of the call once it is beyond `original_max_positions` ("dynamic NTK").

    Keys that are in a cache already keep the angles of the length at which they were computed, as in transformers.
    Unlike there, a call does not remember that a longer one came before it.
    """

    factor: float
    original_max_positions: int

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        return 1.0

    def frequencies(self, theta: float, size: int, length: jax.Array | int | None) -> np.ndarray | jax.Array:
        """(R,) in float32, or (B, R) for lengths (B, 1)."""
        plain = plain_frequencies(theta, size)
        if length is None:
            return plain
        # Below the original length the stretch is clipped to 1, so that the branch not taken is finite as well.
        longer = jnp.maximum(jnp.asarray(length), self.original_max_positions).astype(jnp.float32)
        stretch = self.factor * longer / self.original_max_positions - (self.factor - 1)
        base = theta * stretch ** (size / (size - 2))
        grown = 1.0 / base ** _exponents(size)
        return jnp.where(jnp.asarray(length) > self.original_max_positions, grown, plain)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow frequencies: `factor` times below `low_freq_factor` turns per context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        return 1.0

    def frequencies(self, theta: float, size: int, length: jax.Array | int | None) -> np.ndarray:
        """(R,) in float32; the same for every length."""
        plain = plain_frequencies(theta, size)
        wavelengths = 2 * math.pi / plain
        turns = self.original_max_positions / wavelengths
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return ((1 - blend) * plain / self.factor + blend * plain).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): pairs that turn less than `beta_slow` times per context are `factor` times slower.

    Pairs that turn more than `beta_fast` times stay; between them, pairs are blended by their index. `truncate` rounds
    the two ends of the blend to whole indices. cos and sin grow by `attention_factor`, or else by what the paper
    advises; with both `mscale` and `mscale_all_dim` (DeepSeek) by the ratio of two such numbers.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_magnitude(self.factor, self.mscale) / yarn_magnitude(self.factor, self.mscale_all_dim)
        return yarn_magnitude(self.factor)

    def frequencies(self, theta: float, size: int, length: jax.Array | int | None) -> np.ndarray:
        """(R,) in float32; the same for every length."""
        low, high = (self._pair_that_turns(times, theta, size) for times in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        if low == high:
            high += 0.001  # a step instead of a division by zero
        slowed = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
        powers = _powers(theta, size)
        stretched = 1.0 / (np.float32(self.factor) * powers)
        return (stretched * slowed + 1.0 / powers * (1 - slowed)).astype(np.float32)

    def _pair_that_turns(self, times: float, theta: float, size: int) -> float:
        """The index, with a fraction, of the pair that turns so many times within the original context."""
        return size * math.log(self.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's 0.1 * mscale * ln(factor) + 1; DeepSeek also scales its attention by the square of one."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024): each pair slowed by its own number, (R,), of one of two lists.

    `long_factor` counts for all positions of a call that goes beyond `original_max_positions`, else `short_factor`.
    Keys that are in a cache already keep the angles of the list with which they were computed, as in transformers.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_positions: int
    attention_factor: float

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        return self.attention_factor

    def frequencies(self, theta: float, size: int, length: jax.Array | int | None) -> np.ndarray | jax.Array:
        """(R,) in float32, or (B, R) for lengths (B, 1)."""
        powers = _powers(theta, size)
        short, long = (
            (1.0 / (np.asarray(factors, np.float32) * powers)).astype(np.float32)
            for factors in (self.short_factor, self.long_factor)
        )
        if length is None:
            return short
        return jnp.where(jnp.asarray(length) > self.original_max_positions, long, short)


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


def _exponents(size: int) -> np.ndarray:
    return np.arange(0, size, 2, dtype=np.float32) / np.float32(size)


def _powers(theta: float, size: int) -> np.ndarray:
    return np.asarray(np.float32(theta) ** _exponents(size), np.float32)
