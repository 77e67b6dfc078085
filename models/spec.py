"""The specs of decoders: what all of them have, and of those that see a window of the last tokens in some blocks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self

from bombus.layers import CacheShape, LayerNorm, RMSNorm
from bombus.layers.feed_forward import ACTIVATIONS
from bombus.layers.rotary import Rotary
from bombus.models.base import Spec
from bombus.models.fields import hf
from bombus.policies.errors import Problem, SpecError, closest

__all__ = ["DecoderSpec", "Spec", "SwitchedWindowSpec", "WindowedSpec", "hf"]


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(Spec):
    """What all decoders have. A family changes the keys and defaults, adds its own fields, and overrides methods."""

    vocab_size: int = hf("vocab_size")
    hidden_size: int = hf("hidden_size")
    intermediate_size: int = hf("intermediate_size")
    num_blocks: int = hf("num_hidden_layers")
    num_heads: int = hf("num_attention_heads")
    num_kv_heads: int = hf("num_key_value_heads", default=0)
    head_dim: int = hf("head_dim", default=0)
    activation: str = hf("hidden_act", default="silu")
    max_positions: int = hf("max_position_embeddings", "max_sequence_length", default=2048)
    norm_epsilon: float = hf("rms_norm_eps", default=1e-6)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=False)
    rotary: Rotary | None = field(default_factory=lambda: Rotary(theta=10000.0))

    def norm(self, size: int | None = None) -> RMSNorm | LayerNorm:
        """A norm of the family's kind, over the stream unless a size is given. The last norm is one."""
        return RMSNorm(size or self.hidden_size, epsilon=self.norm_epsilon)

    def rotary_of(self, index: int) -> Rotary | None:
        """How positions turn queries and keys in block `index`; None where they do not."""
        return self.rotary

    def window_of(self, index: int) -> int | None:
        """How many tokens a query of block `index` sees, its own included; None for all."""
        return None

    @property
    def rotary_dim(self) -> int:
        """The size of what rotary positions are given, of which they may turn a fraction."""
        return self.head_dim

    @property
    def cache_shape(self) -> CacheShape:
        """What a block caches of a token."""
        return CacheShape(self.num_kv_heads, self.head_dim, self.head_dim)

    @property
    def embedding_scale(self) -> float | None:
        """What the embedded tokens are multiplied by, rounded to their type."""
        return None

    @property
    def position_embeddings(self) -> int:
        """The number of positions that have an embedding of their own, added to the tokens'; 0 for none."""
        return 0

    @property
    def head_bias(self) -> bool:
        """Whether the language modeling head has a bias."""
        return False

    @property
    def logit_softcap(self) -> float | None:
        """c of c * tanh(logits / c), applied to the next token's logits."""
        return None

    def __post_init__(self) -> None:
        """Fill in the sizes that default to others, and check that they fit together."""
        problems = [
            Problem(subject=f"field {name!r}", message="must be positive", found=str(getattr(self, name)))
            for name in _POSITIVE
            if not 0 < getattr(self, name) < float("inf")
        ]
        if not problems:
            object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
            object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_heads)
            problems = self._mismatches()
        if problems:
            raise SpecError(problems, where="config.json")

    def _mismatches(self) -> list[Problem]:
        problems = []
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            problems.append(
                Problem(
                    subject=f"field {self.key_of('num_kv_heads')!r}",
                    message=f"must divide {self.key_of('num_heads')}",
                    expected=f"a divisor of {self.num_heads}",
                    found=str(self.num_kv_heads),
                )
            )
        rotaries = [value for entry in fields(self) if isinstance(value := getattr(self, entry.name), Rotary)]
        whole = any(rotary.fraction == 1 for rotary in rotaries)
        if self.head_dim < 1 or (whole and self.rotary_dim % 2):
            problems.append(
                Problem(
                    subject="field 'head_dim'",
                    message="must be even for rotary positions" if rotaries else "must be positive",
                    found=f"{self.head_dim} (hidden_size {self.hidden_size}, {self.num_heads} heads)",
                )
            )
        else:
            problems += [problem for rotary in rotaries for problem in rotary.problems(self.rotary_dim)]
        if self.activation not in ACTIVATIONS:
            problems.append(
                Problem(
                    subject=f"field {self.key_of('activation')!r}",
                    message=f"names an activation that is not supported, {self.activation!r}",
                    remedy=closest(self.activation, ACTIVATIONS),
                )
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class WindowedSpec(DecoderSpec):
    """A decoder some blocks of which see a window of the last tokens only; `layer_types` says which."""

    sliding_window: int | None = hf("sliding_window", default=None)
    layer_types: tuple[str, ...] = hf("layer_types", default=())

    def __post_init__(self) -> None:
        """Fill in the types of the layers, besides what every decoder does."""
        if not self.layer_types:
            object.__setattr__(self, "layer_types", self.default_layer_types())
        super().__post_init__()

    def configure(self, **changes: Any) -> Self:
        """As of any spec; types of layers that follow from the other fields follow the changed ones."""
        is_given = type(self).__dataclass_fields__["layer_types"].init
        if is_given and self.layer_types == self.default_layer_types():
            changes.setdefault("layer_types", ())
        return super().configure(**changes)

    def default_layer_types(self) -> tuple[str, ...]:
        """The type of every block where config.json does not say."""
        return ("full_attention" if self.sliding_window is None else "sliding_attention",) * self.num_blocks

    def window_of(self, index: int) -> int | None:
        """The window, in blocks of type sliding_attention."""
        return self.sliding_window if self.layer_types[index] == "sliding_attention" else None

    def _mismatches(self) -> list[Problem]:
        problems = super()._mismatches()
        if len(self.layer_types) != self.num_blocks:
            problems.append(
                Problem(
                    subject="field 'layer_types'",
                    message="must name a type for every layer",
                    expected=f"{self.num_blocks} types",
                    found=str(len(self.layer_types)),
                )
            )
        problems += [
            Problem(
                subject="field 'layer_types'",
                message=f"names a type that is not supported, {name!r}",
                expected=" or ".join(_LAYER_TYPES),
            )
            for name in sorted(set(self.layer_types).difference(_LAYER_TYPES))
        ]
        if "sliding_attention" in self.layer_types and (self.sliding_window is None or self.sliding_window < 1):
            problems.append(
                Problem(
                    subject=f"field {self.key_of('sliding_window')!r}",
                    message="must be positive, as some layers are of type sliding_attention",
                    found=str(self.sliding_window),
                )
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class SwitchedWindowSpec(WindowedSpec):
    """A decoder whose windows are off unless `use_sliding_window` is set; then blocks from `max_window_layers` on."""

    use_sliding_window: bool = hf("use_sliding_window", default=False)
    sliding_window: int | None = hf("sliding_window", default=4096)
    max_window_layers: int = hf("max_window_layers", default=28)

    def __post_init__(self) -> None:
        """The window counts only where it is switched on."""
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        super().__post_init__()

    def to_hf(self) -> dict[str, Any]:
        """As of any spec; without windows, nothing about where they would be."""
        config = super().to_hf()
        if self.use_sliding_window:
            return config
        off = {"sliding_window", "layer_types"}
        if self.max_window_layers == type(self).max_window_layers:
            off.add("max_window_layers")
        return {key: value for key, value in config.items() if key not in off}

    def default_layer_types(self) -> tuple[str, ...]:
        """Full attention first, then windows."""
        full = self.num_blocks if self.sliding_window is None else min(self.max_window_layers, self.num_blocks)
        return ("full_attention",) * full + ("sliding_attention",) * (self.num_blocks - full)


_LAYER_TYPES = ("full_attention", "sliding_attention")
_POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_blocks", "num_heads", "max_positions", "num_labels"),
    "norm_epsilon",
)
