"""What was measured of one contender under one workload, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bombus.evaluation.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One round: seconds to the first token and from there to the last, and the process's peak above what it had
    before the model was loaded, in bytes; None where the system does not say.

    dispatch_seconds: what a step takes longer when the host starts it by itself; None where that was not asked for.
    """

    first_seconds: float
    decode_seconds: float
    peak_memory: int | None = None
    dispatch_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A contender under a workload. Speeds and seconds are medians of its samples, one of each round.

    weight_bytes: of all parameters. cache_bytes: of the cache that is allocated. step_bytes: what one decode step has
    to read, weights and cache half way through the new tokens. load_seconds, load_memory: of the load alone, imports
    left out; load_memory is its peak in bytes. prepare_seconds: of making programs or contexts for this workload.
    start_seconds: from the start of the process to its first token, None for a workload that was not the first.
    alone_memory: the peak of a round before anything was made for other workloads; None as well.
    """

    contender: str
    versions: str
    workload: Workload
    weight_bytes: int
    cache_bytes: int
    step_bytes: float
    load_seconds: float
    load_memory: int | None
    prepare_seconds: float
    start_seconds: float | None
    samples: tuple[Sample, ...]
    alone_memory: int | None = None

    @property
    def steps(self) -> int:
        """Decode steps of a round: the first token comes out of the prompt."""
        return self.workload.new_tokens - 1

    @property
    def decode(self) -> float | None:
        """New tokens per second after the first, of all users; None for a workload of one new token."""
        return None if not self.steps else statistics.median(self._decodes())

    @property
    def decode_per_user(self) -> float | None:
        """The same for each user."""
        return None if self.decode is None else self.decode / self.workload.rows

    @property
    def prefill(self) -> float:
        """Prompt tokens per second, of all users, the first new token included."""
        return statistics.median(self._prefills())

    @property
    def first_token(self) -> float:
        """Seconds to the first token, of a model that is loaded and compiled."""
        return statistics.median(sample.first_seconds for sample in self.samples)

    @property
    def peak_memory(self) -> int | None:
        """The peak of generating, in bytes: alone where that was measured, else the largest of any round."""
        if self.alone_memory is not None:
            return self.alone_memory
        peaks = [sample.peak_memory for sample in self.samples if sample.peak_memory is not None]
        return max(peaks) if peaks else None

    @property
    def memory_ratio(self) -> float | None:
        """The peak over weights and cache."""
        return None if self.peak_memory is None else self.peak_memory / (self.weight_bytes + self.cache_bytes)

    @property
    def dispatch(self) -> float | None:
        """Seconds of a step that the host takes when it starts each by itself, which generate does not."""
        found = [sample.dispatch_seconds for sample in self.samples if sample.dispatch_seconds is not None]
        return statistics.median(found) if found else None

    def fraction_of(self, bandwidth: float) -> float | None:
        """The share of a read bandwidth, in bytes per second, that decoding uses."""
        return None if self.decode_per_user is None else self.step_bytes * self.decode_per_user / bandwidth

    def times(self, other: Measurement) -> tuple[float | None, float]:
        """How many times as fast as another this decodes and reads prompts: medians of the ratios of each round."""
        decode = None
        if self.steps and other.steps:
            decode = _middle_ratio(self._decodes(), other._decodes())
        return decode, _middle_ratio(self._prefills(), other._prefills())

    def to_json(self, bandwidth: float) -> dict[str, Any]:
        """Plain data: what was measured, and what follows from it."""
        derived = {
            "decode_tokens_per_second": self.decode,
            "decode_tokens_per_second_per_user": self.decode_per_user,
            "prefill_tokens_per_second": self.prefill,
            "first_token_seconds": self.first_token,
            "peak_memory": self.peak_memory,
            "peak_memory_over_weights_and_cache": self.memory_ratio,
            "fraction_of_read_bandwidth": self.fraction_of(bandwidth),
            "dispatch_seconds": self.dispatch,
        }
        plain = asdict(self)
        samples = plain.pop("samples")
        return {**plain, **derived, "samples": list(samples)}

    def _decodes(self) -> list[float]:
        return [self.workload.rows * self.steps / sample.decode_seconds for sample in self.samples]

    def _prefills(self) -> list[float]:
        return [self.workload.rows * self.workload.prompt_tokens / sample.first_seconds for sample in self.samples]


def _middle_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
