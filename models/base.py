"""Spec: an architecture's numbers, read strictly from a Hugging Face config.json and written back to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from bombus.models.fields import keys_of, read_field, written
from bombus.models.rotary import checked, rotary_from_hf, rotary_to_hf
from bombus.policies.errors import Problem, SpecError, closest

# Keys of every Hugging Face config that do not change what the model computes at inference.
_WITHOUT_EFFECT = frozenset({
    *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version"),
    *("torch_dtype", "dtype", "quantization_config", "use_cache", "initializer_range", "gradient_checkpointing"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "num_labels", "problem_type"),
    # Dropout, noise and losses are for training alone.
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout"),
    *("router_aux_loss_coef", "router_jitter_noise"),
    # What transformers' functions return beside the same numbers, and in which pieces they compute them.
    *("return_dict", "output_hidden_states", "output_attentions", "output_router_logits", "chunk_size_feed_forward"),
    "task_specific_params",  # settings of generation
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The base of all specs. `head` is what stands on the backbone: one of the registry's HEADS."""

    # Keys that are accepted at this one value only, because nothing here implements another; or, as a tuple, at some
    # values that mean the same. The first is written.
    only: ClassVar[Mapping[str, Any]] = {}
    # Keys that have no effect given the values in `only`.
    unused: ClassVar[frozenset[str]] = frozenset()
    # How rotary positions are read; see rotary_from_hf. Without `rotary_keys` there are none in the family.
    default_theta: ClassVar[float] = 10000.0
    theta_keys: ClassVar[tuple[str, ...]] = ("rope_theta",)
    fraction_keys: ClassVar[tuple[str, ...]] = ()
    default_fraction: ClassVar[float] = 1.0
    rotary_keys: ClassVar[frozenset[str]] = frozenset(
        {"rope_parameters", "rope_scaling", "original_max_position_embeddings"}
    )

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
        known = set(_WITHOUT_EFFECT | cls.unused | cls._rotary_keys())
        for entry in fields(cls):
            known.update(keys_of(entry))
            values |= read_field(entry, config, problems)
        values |= cls.read_rotary(config, problems)
        for key, value in config.items():
            if key in cls.only:
                if value is not None and value not in _choices(cls.only[key]):
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
        config = {key: _choices(value)[0] for key, value in self.only.items()}
        config |= {keys_of(entry)[0]: written(getattr(self, entry.name)) for entry in fields(self) if keys_of(entry)}
        config |= self.write_rotary()
        if self.head in ("sequence_classification", "token_classification"):
            config["id2label"] = {str(index): f"LABEL_{index}" for index in range(self.num_labels)}
            config["label2id"] = {f"LABEL_{index}": index for index in range(self.num_labels)}
        return config

    @classmethod
    def read_rotary(cls, config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
        """name -> value of the fields that say how positions are rotated. They are None for a family without."""
        if not cls.rotary_keys:
            return {"rotary": None}
        rotary = rotary_from_hf(
            config,
            default_theta=cls.default_theta,
            problems=problems,
            theta_keys=cls.theta_keys,
            fraction_keys=cls.fraction_keys,
            default_fraction=cls.default_fraction,
            max_positions=getattr(cls, "max_positions", None),
        )
        return {"rotary": rotary}

    def write_rotary(self) -> dict[str, Any]:
        """The fields of config.json that `read_rotary` reads back to the same."""
        rotary = getattr(self, "rotary", None)
        if rotary is None:
            return {}
        fraction_key = {"fraction_key": self.fraction_keys[0]} if self.fraction_keys else {}
        return rotary_to_hf(
            rotary, theta_key=self.theta_keys[0], default_fraction=self.default_fraction, **fraction_key
        )

    @classmethod
    def _rotary_keys(cls) -> frozenset[str]:
        return cls.rotary_keys.union(cls.theta_keys, cls.fraction_keys) if cls.rotary_keys else frozenset()

    @classmethod
    def key_of(cls, name: str) -> str:
        """The key of config.json that a field is written to, or its own name where it has none."""
        return next((keys_of(entry)[0] for entry in fields(cls) if entry.name == name and keys_of(entry)), name)

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


def _num_labels(config: Mapping[str, Any], problems: list[Problem]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    count = config.get("num_labels")
    return 2 if count is None else checked("num_labels", count, "int", problems)


def _choices(only: Any) -> tuple[Any, ...]:
    return only if isinstance(only, tuple) else (only,)


def _refused(key: str, value: Any, only: Any) -> Problem:
    expected = " or ".join(map(repr, _choices(only)))
    return Problem(subject=f"field {key!r}", message="is not supported", expected=expected, found=repr(value))
