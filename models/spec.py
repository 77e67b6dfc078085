"""Spec: an architecture's numbers, read strictly from a Hugging Face config.json and written back to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from bombus.layers.feed_forward import ACTIVATIONS
from bombus.layers.rotary import Rotary
from bombus.models.rotary import checked, rotary_from_hf, rotary_to_hf
from bombus.policies.errors import Problem, SpecError, closest

# Keys of every Hugging Face config that do not change what the model computes at inference.
_WITHOUT_EFFECT = frozenset({
    *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version"),
    *("torch_dtype", "dtype", "quantization_config", "use_cache", "attention_dropout", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "num_labels", "problem_type"),
    *("rope_parameters", "rope_scaling", "rope_theta"),  # read on their own
})  # fmt: skip


def hf(key: str, *aliases: str, default: Any = MISSING) -> Any:
    """A spec field that is read from (and written to) `key` of config.json; required unless it has a default."""
    return field(default=default, metadata={"hf": (key, *aliases)})


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The base of all specs. `head` is what stands on the backbone: causal_lm, sequence_classification or base."""

    # Keys that are accepted at this one value only, because nothing here implements another.
    only: ClassVar[Mapping[str, Any]] = {}
    # Keys that have no effect given the values in `only`.
    unused: ClassVar[frozenset[str]] = frozenset()
    default_theta: ClassVar[float] = 10000.0

    head: str = "causal_lm"
    num_labels: int = 2

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, head: str = "causal_lm", strict: bool = True) -> Self:
        """The spec that config.json describes.

        Raises SpecError that lists every missing field, wrong type and key that would change the numbers and
        that nothing here implements; `strict=False` ignores keys that are unknown.
        """
        problems: list[Problem] = []
        values: dict[str, Any] = {"head": head, "num_labels": _num_labels(config, problems)}
        known = set(_WITHOUT_EFFECT | cls.unused)
        for entry in fields(cls):
            if entry.name == "rotary":
                values["rotary"] = rotary_from_hf(config, default_theta=cls.default_theta, problems=problems)
            keys = entry.metadata.get("hf", ())
            known.update(keys)
            key = next((key for key in keys if config.get(key) is not None), None)
            if key is not None:
                values[entry.name] = checked(key, config[key], str(entry.type), problems)
            elif keys and entry.default is MISSING:
                problems.append(Problem(subject=f"field {keys[0]!r}", message="is missing", expected=str(entry.type)))
        for key, value in config.items():
            if key in cls.only:
                if value is not None and value != cls.only[key]:
                    problems.append(_refused(key, value, cls.only[key]))
            elif key not in known and value not in (None, False) and strict:
                problems.append(
                    Problem(
                        subject=f"field {key!r}",
                        message=f"is {value!r}, and nothing here reads it",
                        remedy="if it cannot change the numbers, load with strict=False",
                    )
                )
        if problems:
            raise SpecError(problems, where="config.json")
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The config.json fields that describe this spec; `from_hf` reads them back to an equal spec."""
        config: dict[str, Any] = dict(self.only)
        for entry in fields(self):
            value = getattr(self, entry.name)
            if "hf" in entry.metadata:
                config[entry.metadata["hf"][0]] = value
            elif entry.name == "rotary":
                config.update(rotary_to_hf(value))
        if self.head == "sequence_classification":
            config["id2label"] = {str(index): f"LABEL_{index}" for index in range(self.num_labels)}
            config["label2id"] = {f"LABEL_{index}": index for index in range(self.num_labels)}
        return config

    def configure(self, **changes: Any) -> Self:
        """A spec with some fields changed. Raises SpecError for a field that there is not."""
        names = [entry.name for entry in fields(self)]
        unknown = [
            Problem(subject=f"spec field {name!r}", message="does not exist", remedy=closest(name, names))
            for name in changes
            if name not in names
        ]
        if unknown:
            raise SpecError(unknown, where=type(self).__name__)
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(Spec):
    """A pre-norm decoder with rotary positions, grouped-query attention and a gated feed-forward."""

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
    attention_bias: bool = hf("attention_bias", default=False)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=False)
    rotary: Rotary = field(default_factory=lambda: Rotary(theta=10000.0))

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
                    subject="field 'num_key_value_heads'",
                    message="must divide num_attention_heads",
                    expected=f"a divisor of {self.num_heads}",
                    found=str(self.num_kv_heads),
                )
            )
        if self.head_dim < 2 or self.head_dim % 2:
            problems.append(
                Problem(
                    subject="field 'head_dim'",
                    message="must be even for rotary positions",
                    found=f"{self.head_dim} (hidden_size {self.hidden_size}, {self.num_heads} heads)",
                )
            )
        if self.activation not in ACTIVATIONS:
            problems.append(
                Problem(
                    subject="field 'hidden_act'",
                    message=f"names an activation that is not supported, {self.activation!r}",
                    remedy=closest(self.activation, ACTIVATIONS),
                )
            )
        return problems


_POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_blocks", "num_heads", "max_positions", "num_labels"),
    "norm_epsilon",
)


def _num_labels(config: Mapping[str, Any], problems: list[Problem]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    count = config.get("num_labels")
    return 2 if count is None else checked("num_labels", count, "int", problems)


def _refused(key: str, value: Any, only: Any) -> Problem:
    return Problem(subject=f"field {key!r}", message="is not supported", expected=repr(only), found=repr(value))
