"""The plan of tied and untied models, of a bare backbone, and of tensors that only look as if they were read."""

from __future__ import annotations

import pytest
from plan_headers import (
    BF16,
    DEQUANTIZE,
    EMBEDDING,
    F8,
    F32,
    GATE,
    HEAD,
    I32,
    I64,
    LAYER,
    NORM,
    SIZES,
    headers,
    llama,
    plan,
    refusal,
    sources,
    stored,
    tensor,
)

from bombus.loader.compressed import Group
from bombus.loader.quantization import CompressedScheme
from bombus.models.qwen3 import Qwen3Spec
from bombus.policies.formats import find_format


def test_a_tied_model_is_read_from_the_embedding_alone():
    made = plan(headers())
    assert HEAD not in sources(made)
    assert sources(made)[EMBEDDING] == "model.embed_tokens.weight"


def test_a_tied_model_is_read_from_lm_head_alone():
    found = headers()
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")
    made = plan(found)
    assert sources(made)[EMBEDDING] == "lm_head.weight"
    assert HEAD not in sources(made)
    assert made.unused == ()


def test_a_tied_model_with_both_tensors_compares_them():
    found = headers() | {"lm_head.weight": tensor((320, 192))}
    made = plan(found)
    (embedding,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    assert embedding.source.tensor == "model.embed_tokens.weight"
    assert embedding.source.copies == {"lm_head.weight": (found["lm_head.weight"], found["model.embed_tokens.weight"])}
    assert made.unused == ()


def test_a_tied_model_compares_the_scales_of_both_tensors_too():
    names = ("model.embed_tokens.weight", "lm_head.weight")
    found = headers() | {name: tensor((320, 192), F8) for name in names}
    found |= {f"{name}_scale_inv": tensor((3, 2), F32) for name in names}
    made = plan(found, preserve_source_types=True)
    (embedding,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    ours, theirs = ([found[name], found[f"{name}_scale_inv"]] for name in names)
    assert embedding.source.infos == ours
    assert embedding.source.copies == {
        "lm_head.weight": (theirs[0], ours[0]),
        "lm_head.weight_scale_inv": (theirs[1], ours[1]),
    }
    assert made.unused == ()


def test_a_tied_tensor_in_another_format_is_refused():
    """One problem: its scales belong to it."""
    found = headers() | {"lm_head.weight": tensor((320, 192), F8), "lm_head.weight_scale_inv": tensor((3, 2), F32)}
    assert refusal(found) == [
        "tensor lm_head.weight: cannot be a copy of model.embed_tokens.weight, to which config.json says it is tied "
        "(expected bf16[320, 192], found f8_e4m3fn[320, 192]). Load with spec=load_spec(repo, "
        "tie_word_embeddings=False) if they are two tensors"
    ]


def test_a_tied_tensor_that_is_packed_is_refused():
    packed = Group(targets=("Linear",), format=find_format("int4(group=64)"))
    found = headers() | {
        "lm_head.weight_packed": tensor((320, 24), I32),
        "lm_head.weight_scale": tensor((320, 3), BF16),
        "lm_head.weight_shape": tensor((2,), I64),
    }
    problems = refusal(found, scheme=CompressedScheme(groups=(packed,)))
    assert problems == [
        "tensor lm_head.weight_packed: cannot be a copy of model.embed_tokens.weight, to which config.json says it is "
        "tied (expected bf16[320, 192], found int32[320, 24]). Load with spec=load_spec(repo, "
        "tie_word_embeddings=False) if they are two tensors"
    ]


def test_an_untied_model_reads_both_tensors():
    made = plan(headers() | {"lm_head.weight": tensor((320, 192))}, spec=llama(tie_word_embeddings=False))
    assert sources(made)[HEAD] == "lm_head.weight"
    assert all(not entry.source.copies for entry in made.entries)


def test_an_untied_model_without_lm_head_is_refused():
    (problem,) = refusal(headers(), spec=llama(tie_word_embeddings=False))
    assert problem.startswith(f"tensor lm_head.weight: is missing; parameter {HEAD} needs it")


@pytest.mark.parametrize("head", ["base", "causal_lm"])
def test_a_checkpoint_of_the_bare_backbone_is_without_the_prefix(head):
    found = {name.removeprefix("model."): info for name, info in headers(F8).items()}
    made = plan(found, {"layers.0.mlp.gate_proj.weight": "f32"}, spec=llama(head=head))
    assert sources(made)[NORM] == "norm.weight"
    # Rules name the tensors as this checkpoint spells them.
    assert stored(made)[GATE] == ("f32", DEQUANTIZE)


def test_base_leaves_out_the_head_of_a_checkpoint():
    made = plan(headers() | {"lm_head.weight": tensor((320, 192))}, spec=llama(head="base", tie_word_embeddings=False))
    assert made.unused == ("lm_head.weight",)
    assert HEAD not in sources(made)


def test_old_buffers_are_ignored_by_a_written_list():
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found = headers() | {name: tensor((24,), F32)}
    assert plan(found).unused == (name,)
    # Qwen3 never saved it, so there it is a mistake.
    norms = {f"{LAYER}self_attn.{part}_norm.weight": tensor((48,)) for part in "qk"}
    (problem,) = refusal(found | norms, spec=Qwen3Spec(**SIZES, tie_word_embeddings=True))
    assert problem.startswith(f"tensor {name}: is unexpected: no parameter reads it (found f32[24])")


@pytest.mark.parametrize(
    ("name", "shape", "tied"),
    [
        ("lm_head.bias", (320,), False),
        ("lm_head.bias", (320,), True),
        ("model.norm.bias", (192,), True),
        ("model.embed_tokens.bias", (192,), True),
        ("lm_head.weight_scale_inv", (3, 2), False),
    ],
)
def test_a_tensor_beside_one_that_is_read_is_not_dropped(name, shape, tied):
    """Dropping the bias of a layer that this model has would change its numbers without a word."""
    found = headers() | {name: tensor(shape)}
    if not tied:
        found["lm_head.weight"] = tensor((320, 192))
    (problem,) = refusal(found, spec=llama(tie_word_embeddings=tied))
    assert problem.startswith(f"tensor {name}: ")
