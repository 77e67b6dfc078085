"""Spec: an architecture's numbers, read strictly from a Hugging Face config.json and written back to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from bombus.layers.feed_forward import ACTIVATIONS
from bombus.layers.rotary import Llama3Scaling, Rotary
from bombus.policies.errors import Problem, SpecError, closest

# Keys of every Hugging Face config that do not change what the model computes at inference.
_WITHOUT_EFFECT = frozenset({
    *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version"),
    *("torch_dtype", "dtype", "quantization_config", "use_cache", "attention_dropout", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "num_labels", "problem_type"),
    *("rope_parameters", "rope_scaling", "rope_theta"),  # read on their own
})  # fmt: skip
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_TYPES: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


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
                values[entry.name] = _checked(key, config[key], str(entry.type), problems)
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


def rotary_from_hf(config: Mapping[str, Any], *, default_theta: float, problems: list[Problem]) -> Rotary:
    """Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        problems.append(Problem(subject="field 'rope_scaling'", message="must be an object", found=repr(parameters)))
        return Rotary(theta=default_theta)
    theta = next((it["rope_theta"] for it in (parameters, config) if it.get("rope_theta") is not None), default_theta)
    theta = _checked("rope_theta", theta, "float", problems)
    if not theta > 0:
        problems.append(Problem(subject="field 'rope_theta'", message="must be positive", found=repr(theta)))
    problems += [
        Problem(subject=f"field 'rope_scaling.{key}'", message=f"is {value!r}, and nothing here reads it")
        for key, value in parameters.items()
        if key not in ("rope_theta", "rope_type", "type", *_LLAMA3_KEYS) and value is not None
    ]
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return Rotary(theta=theta)
    if kind != "llama3":
        problems.append(
            Problem(
                subject="field 'rope_scaling'",
                message=f"asks for rotary type {kind!r}, which is not supported",
                expected="default or llama3",
            )
        )
        return Rotary(theta=default_theta)
    missing = [key for key in _LLAMA3_KEYS if parameters.get(key) is None]
    problems += [Problem(subject=f"field 'rope_scaling.{key}'", message="is missing") for key in missing]
    if missing:
        return Rotary(theta=default_theta)
    factor, low, high = (_checked(key, parameters[key], "float", problems) for key in _LLAMA3_KEYS[:3])
    original = _checked(_LLAMA3_KEYS[3], parameters[_LLAMA3_KEYS[3]], "int", problems)
    return Rotary(
        theta=theta,
        scaling=Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=original
        ),
    )


def rotary_to_hf(rotary: Rotary) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the spelling that every version of transformers reads."""
    if rotary.scaling is None:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    scaling = rotary.scaling
    return {
        "rope_theta": rotary.theta,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
    }


def _num_labels(config: Mapping[str, Any], problems: list[Problem]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    count = config.get("num_labels")
    return 2 if count is None else _checked("num_labels", count, "int", problems)


def _checked(key: str, value: Any, expected: str, problems: list[Problem]) -> Any:
    accepted = _TYPES[expected]
    # bool is an int in Python, but `true` for a size is a mistake.
    if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
        problems.append(
            Problem(subject=f"field {key!r}", message="has the wrong type", expected=expected, found=repr(value))
        )
        return 1
    return float(value) if expected == "float" else value


def _refused(key: str, value: Any, only: Any) -> Problem:
    return Problem(subject=f"field {key!r}", message="is not supported", expected=repr(only), found=repr(value))
