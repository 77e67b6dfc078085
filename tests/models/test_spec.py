"""Specs: the types that fields may have, what a family may override, and windows by type of layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from bombus.layers import Rotary
from bombus.models import LlamaSpec, Qwen3Spec
from bombus.models.spec import DecoderSpec, SwitchedWindowSpec, WindowedSpec, hf
from bombus.policies.errors import Problem, SpecError

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


@dataclass(frozen=True, kw_only=True)
class KindsSpec(DecoderSpec):
    """A field of every type."""

    only: ClassVar[Mapping[str, Any]] = {"mode": ("new", "modern"), "version": 1}

    rank: int | None = hf("rank", default=7)
    cap: float | None = hf("cap", default=None)
    sections: tuple[int, ...] = hf("sections", "old_sections", default=())
    factors: tuple[float, ...] = hf("factors", default=(1.0,))
    names: tuple[str, ...] = hf("names", default=("a",))
    title: str | None = hf("title")


@dataclass(frozen=True, kw_only=True)
class OtherSpec(DecoderSpec):
    """Other keys, no rotary positions, a size that defaults to another."""

    rotary_keys: ClassVar[frozenset[str]] = frozenset()

    hidden_size: int = hf("n_embd")
    num_blocks: int = hf("n_layer")
    num_heads: int = hf("n_head")
    intermediate_size: int = hf("n_inner", default=0)
    activation: str = hf("activation_function", default="gelu_new")
    num_kv_heads: int = 0
    head_dim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "intermediate_size", self.intermediate_size or 4 * self.hidden_size)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class PartialSpec(DecoderSpec):
    """Rotary keys of its own."""

    theta_keys: ClassVar[tuple[str, ...]] = ("rotary_base", "rope_theta")
    fraction_keys: ClassVar[tuple[str, ...]] = ("rotary_share",)
    default_fraction: ClassVar[float] = 0.5
    default_theta: ClassVar[float] = 31.0


@dataclass(frozen=True, kw_only=True)
class TwoSpec(DecoderSpec):
    """Two kinds of rotary positions."""

    rotary_keys: ClassVar[frozenset[str]] = DecoderSpec.rotary_keys | {"local_theta"}

    local: Rotary = field(default_factory=lambda: Rotary(theta=5.0))

    @classmethod
    def read_rotary(cls, config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
        return super().read_rotary(config, problems) | {"local": Rotary(theta=config["local_theta"])}

    def write_rotary(self) -> dict[str, Any]:
        return super().write_rotary() | {"local_theta": self.local.theta}

    def rotary_of(self, index: int) -> Rotary | None:
        return self.local if index % 2 else self.rotary


def refusal(kind: type[DecoderSpec], **changes: Any) -> list[str]:
    """The problems of a config, as text."""
    with pytest.raises(SpecError) as raised:
        kind.from_hf(SIZES | changes)
    assert raised.value.where == "config.json"
    return [str(problem) for problem in raised.value.problems]


def again(spec: DecoderSpec) -> Any:
    """The spec that its own config.json describes."""
    return type(spec).from_hf(json.loads(json.dumps(spec.to_hf())), head=spec.head)


def test_every_type_of_field_is_read_and_written() -> None:
    """Lists are tuples; null is None where a field may be None, and as absent elsewhere."""
    spec = KindsSpec.from_hf(
        SIZES | {"rank": None, "cap": 2, "old_sections": [1, 2], "factors": [1, 2.5], "names": None, "title": None}
    )
    assert (spec.rank, spec.cap, spec.sections, spec.factors) == (None, 2.0, (1, 2), (1.0, 2.5))
    assert (spec.names, spec.title) == (("a",), None)
    assert isinstance(spec.cap, float)
    assert isinstance(spec.factors[0], float)
    written = spec.to_hf()
    assert {key: written[key] for key in ("rank", "cap", "sections", "factors", "names")} == {
        "rank": None,
        "cap": 2.0,
        "sections": [1, 2],
        "factors": [1.0, 2.5],
        "names": ["a"],
    }
    assert again(spec) == spec
    assert hash(again(spec)) == hash(spec)
    assert KindsSpec.from_hf(SIZES | {"title": "x"}).rank == 7


def test_wrong_types_are_refused() -> None:
    """By the type of the field, or of the item."""
    assert refusal(KindsSpec, rank=1.5, cap="x", sections=3, factors=[1, "a"], names=[True]) == [
        "field 'rank': has the wrong type (expected int, found 1.5)",
        "field 'cap': has the wrong type (expected float, found 'x')",
        "field 'sections': has the wrong type (expected list of int, found 3)",
        "field 'factors[1]': has the wrong type (expected float, found 'a')",
        "field 'names[0]': has the wrong type (expected str, found True)",
        "field 'title': is missing (expected str | None)",
    ]


def test_only_takes_values_that_mean_the_same() -> None:
    """The first is written."""
    spec = KindsSpec.from_hf(SIZES | {"title": "x", "mode": "modern", "version": 1})
    assert (spec.to_hf()["mode"], spec.to_hf()["version"]) == ("new", 1)
    assert refusal(KindsSpec, title="x", mode="old", version=2) == [
        "field 'mode': is not supported (expected 'new' or 'modern', found 'old')",
        "field 'version': is not supported (expected 1, found 2)",
    ]


def test_a_family_may_have_other_keys_and_no_rotary_positions() -> None:
    """A field without a key is not read, and keys of rotary positions are unknown."""
    config = {"vocab_size": 40, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": None}
    spec = OtherSpec.from_hf(config)
    assert (spec.intermediate_size, spec.num_kv_heads, spec.head_dim, spec.rotary) == (60, 3, 5, None)
    assert again(spec) == spec
    assert not {"head_dim", "num_key_value_heads", "rope_theta", "rope_scaling"} & set(spec.to_hf())
    with pytest.raises(SpecError) as raised:
        OtherSpec.from_hf(config | {"rope_theta": 5.0, "head_dim": 4, "num_key_value_heads": 1})
    assert [str(problem).partition(":")[0] for problem in raised.value.problems] == [
        "field 'rope_theta'",
        "field 'head_dim'",
        "field 'num_key_value_heads'",
    ]
    with pytest.raises(SpecError, match="field 'activation_function': names an activation that is not supported"):
        OtherSpec.from_hf(config | {"activation_function": "gelu_bew"})
    with pytest.raises(SpecError, match=r"field 'head_dim': must be positive \(found 0 \(hidden_size 1, 3 heads\)\)"):
        OtherSpec.from_hf(config | {"n_embd": 1})


def test_rotary_keys_of_a_family() -> None:
    """Its own keys and defaults, read and written; an odd number of rotated dimensions is refused."""
    spec = PartialSpec.from_hf(SIZES)
    assert spec.rotary == Rotary(theta=31.0, fraction=0.5)
    spec = PartialSpec.from_hf(SIZES | {"rotary_base": 9, "rotary_share": 0.25})
    assert spec.rotary == Rotary(theta=9.0, fraction=0.25)
    assert again(spec) == spec
    [text] = refusal(PartialSpec, rotary_share=0.4)
    assert text == "rotary positions: must rotate an even number of a head's dimensions (found 3 (0.4 of 8))"
    # A family that rotates whole heads refuses the key.
    assert refusal(LlamaSpec, partial_rotary_factor=0.5)[0].startswith("field 'partial_rotary_factor': is 0.5")


def test_a_spec_may_read_several_kinds_of_rotary_positions() -> None:
    """And says which block has which."""
    spec = TwoSpec.from_hf(SIZES | {"rope_theta": 9.0, "local_theta": 3.0})
    assert [spec.rotary_of(index) for index in range(2)] == [Rotary(theta=9.0), Rotary(theta=3.0)]
    assert again(spec) == spec


def test_windows_by_type_of_layer() -> None:
    """All blocks have the window unless the file says which; a round trip keeps it."""
    assert [WindowedSpec.from_hf(SIZES).window_of(index) for index in range(4)] == [None] * 4
    assert [WindowedSpec.from_hf(SIZES | {"sliding_window": 3}).window_of(index) for index in range(4)] == [3] * 4
    types = ["sliding_attention", "full_attention"] * 2
    spec = WindowedSpec.from_hf(SIZES | {"sliding_window": 3, "layer_types": types})
    assert [spec.window_of(index) for index in range(4)] == [3, None, 3, None]
    assert again(spec) == spec
    assert spec.to_hf()["layer_types"] == types


def test_windows_that_do_not_fit_are_refused() -> None:
    """A wrong number of types, an unknown type, a missing or empty window."""
    sliding = ["sliding_attention"] * 4
    assert refusal(WindowedSpec, layer_types=["full_attention", "chunked_attention"]) == [
        "field 'layer_types': must name a type for every layer (expected 4 types, found 2)",
        "field 'layer_types': names a type that is not supported, 'chunked_attention' "
        "(expected full_attention or sliding_attention)",
    ]
    message = "field 'sliding_window': must be positive, as some layers are of type sliding_attention"
    assert refusal(WindowedSpec, layer_types=sliding) == [f"{message} (found None)"]
    assert refusal(WindowedSpec, layer_types=sliding, sliding_window=0) == [f"{message} (found 0)"]


def test_windows_that_are_switched_on() -> None:
    """From max_window_layers on, where the switch is set; else none is read or written."""
    on = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3}
    for kind in (SwitchedWindowSpec, Qwen3Spec):
        spec = kind.from_hf(SIZES | on)
        assert [spec.window_of(index) for index in range(4)] == [None, None, None, 3]
        assert again(spec) == spec
        spec = kind.from_hf(SIZES | on | {"use_sliding_window": False})
        assert [spec.window_of(index) for index in range(4)] == [None] * 4
        assert not {"sliding_window", "layer_types"} & set(spec.to_hf())
        assert again(spec) == spec


def test_labels_are_written_for_both_classifications() -> None:
    """And read back; other heads have none."""
    for head in ("sequence_classification", "token_classification"):
        spec = LlamaSpec.from_hf(SIZES | {"num_labels": 5}, head=head)
        assert spec.num_labels == 5
        assert again(spec) == spec
        assert spec.to_hf()["id2label"]["4"] == "LABEL_4"
    assert "id2label" not in LlamaSpec.from_hf(SIZES, head="question_answering").to_hf()


@pytest.mark.parametrize(
    "key",
    ["resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "classifier_dropout", "router_aux_loss_coef"],
)
def test_keys_of_training_have_no_effect(key: str) -> None:
    """They are accepted at any value."""
    assert LlamaSpec.from_hf(SIZES | {key: 0.1}) == LlamaSpec.from_hf(SIZES)
