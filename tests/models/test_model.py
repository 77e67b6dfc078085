"""Model: building, initialising, applying; caches, padding, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_decoder import dequantize

import bombus
from bombus.models import LlamaSpec, Qwen3Spec
from bombus.models.model import flat, nested
from bombus.models.registry import Architecture, architectures
from bombus.testing import tiny_checkpoint

TOKENS = np.random.default_rng(1).integers(0, 320, (2, 12))
SIZES = {"vocab_size": 320, "hidden_size": 192, "intermediate_size": 320, "num_blocks": 2, "num_heads": 6}
F32 = {"default": {"compute": "f32"}}


@pytest.fixture(scope="module")
def loaded(tiny: Callable[..., Path]) -> bombus.LoadedModel:
    """A tiny FP8 model with its types preserved, computed in float32."""
    return bombus.load_model(tiny("qwen3"), preserve_source_types=True, policy=F32)


@pytest.fixture(scope="module")
def apply(loaded: bombus.LoadedModel) -> Callable[..., bombus.Output]:
    """The compiled apply of `loaded`."""
    return jax.jit(loaded.model.apply, static_argnames="last_only")


def test_decoding_token_by_token_equals_one_prefill(loaded, apply) -> None:
    """Through the cache, in steps of one and of several tokens, to 1e-5 of the largest logit."""
    expected = np.asarray(apply(loaded.params, TOKENS).logits)
    for sizes in ([1] * 12, [5, 1, 6]):
        cache, parts, start = loaded.model.init_cache(2, 16), [], 0
        for size in sizes:
            output = apply(loaded.params, TOKENS[:, start : start + size], cache=cache)
            cache, start = output.cache, start + size
            parts.append(np.asarray(output.logits))
        assert np.abs(np.concatenate(parts, 1) - expected).max() <= 1e-5 * np.abs(expected).max()
        assert int(cache.length) == 12
        np.testing.assert_array_equal(cache.positions, 12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(loaded, apply, side: str) -> None:
    """A row of 7 tokens in a batch of 12 has the logits it has alone."""
    alone = np.asarray(apply(loaded.params, TOKENS[:1, :7]).logits)[0]
    where = np.s_[5:] if side == "left" else np.s_[:7]
    padded, mask = TOKENS.copy(), np.ones(TOKENS.shape, bool)
    padded[0], mask[0] = 0, False
    padded[0, where], mask[0, where] = TOKENS[0, :7], True
    output = np.asarray(apply(loaded.params, padded, mask=mask).logits)
    np.testing.assert_allclose(output[0, where], alone, atol=1e-5 * np.abs(alone).max())
    expected = np.asarray(apply(loaded.params, TOKENS[1:]).logits)[0]
    np.testing.assert_allclose(output[1], expected, atol=1e-5 * np.abs(expected).max())


def test_last_only_is_the_last_position(loaded, apply) -> None:
    """(B, 1, V), equal to the last of all."""
    expected = np.asarray(apply(loaded.params, TOKENS).logits)[:, -1:]
    np.testing.assert_allclose(apply(loaded.params, TOKENS, last_only=True).logits, expected, atol=1e-5)


def test_module_is_an_ordinary_flax_module(loaded, apply) -> None:
    """Bound parameters are nnx.Params and calling the module equals apply."""
    module = loaded.model.module(loaded.params)
    assert isinstance(module, nnx.Module)
    assert isinstance(module.embedder.token_embedding.embedding, nnx.Param)
    found = jax.jit(lambda tokens: module(tokens).logits)(TOKENS)
    np.testing.assert_allclose(found, apply(loaded.params, TOKENS).logits, atol=1e-5)


def test_gradients_reach_wide_parameters_through_fp8_kernels(loaded) -> None:
    """The derivative by the first norm's scale equals a difference quotient."""
    model = loaded.model

    def loss(scale: jax.Array) -> jax.Array:
        values = flat(loaded.params) | {"decoder.blocks.0.self_attention_norm.scale": scale}
        return (model.apply(nested(values), TOKENS[:1, :4]).logits ** 2).mean()

    scale = loaded.params["decoder"]["blocks"]["0"]["self_attention_norm"]["scale"].astype(jnp.float32)
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(scale.shape), jnp.float32)
    gradient = jax.jit(jax.grad(loss))(scale)
    compiled = jax.jit(loss)
    difference = (compiled(scale + 1e-2 * direction) - compiled(scale - 1e-2 * direction)) / 2e-2
    assert float(gradient @ direction) == pytest.approx(float(difference), rel=2e-2)


def test_apply_refuses_what_it_cannot_do(loaded) -> None:
    """Texts for tokens of a wrong shape or type and for a full cache."""
    model, params = loaded.model, loaded.params
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \(batch, tokens\), not int.*\(12,\)"):
        model.apply(params, TOKENS[0])
    with pytest.raises(ValueError, match=r"not float32\(2, 12\)"):
        model.apply(params, TOKENS.astype(np.float32))
    with pytest.raises(ValueError, match="12 tokens do not fit: the cache has 8 of its 8 slots left"):
        model.apply(params, TOKENS, cache=model.init_cache(2, 8))


def test_learned_positions_are_not_passed(tmp_path: Path) -> None:
    """A lookup past the table would take its last row; padding takes no position."""
    loaded = bombus.load_model(tiny_checkpoint("gpt2", tmp_path, "f32", max_positions=12))
    model, params, more = loaded.model, loaded.params, np.concatenate([TOKENS, TOKENS[:, :3]], 1)
    with pytest.raises(ValueError, match="15 tokens after 0 do not fit: the model has 12 learned positions"):
        model.apply(params, more)
    cache = model.apply(params, TOKENS[:, :10], cache=model.init_cache(2, 16)).cache
    with pytest.raises(ValueError, match="3 tokens after 10 do not fit: the model has 12 learned positions"):
        model.apply(params, TOKENS[:, :3], cache=cache)
    padded = model.apply(params, more, mask=np.arange(15) >= np.array([[3], [3]])).logits[:, 3:]
    np.testing.assert_allclose(padded, model.apply(params, more[:, 3:]).logits, atol=1e-4)


def test_init_stores_what_the_policy_says() -> None:
    """FP8 kernels with fitting scales, the rest in bf16; dequantized they are normal(0, 0.02)."""
    spec = Qwen3Spec(**SIZES, num_kv_heads=2, head_dim=32)
    model = bombus.build_model(spec, bombus.create_policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}))
    params = flat(model.init(jax.random.key(0)))
    abstract = flat(model.abstract_params)
    assert {path: (value.shape, value.dtype) for path, value in params.items()} == {
        path: (value.shape, value.dtype) for path, value in abstract.items()
    }
    kernel = np.asarray(params["decoder.blocks.1.ffn.gate.kernel"])
    scale = np.asarray(params["decoder.blocks.1.ffn.gate.scale_inv"])
    assert kernel.dtype.name == "float8_e4m3fn"
    assert scale.shape == (3, 2)
    values = dequantize(kernel, scale, (128, 128))
    assert values.std() == pytest.approx(0.02, rel=0.02)
    assert params["output_norm.scale"].dtype == jnp.bfloat16
    logits = jax.jit(model.apply)(nested(params), TOKENS).logits
    assert np.isfinite(np.asarray(logits)).all()


def test_init_in_low_precision_is_for_weights() -> None:
    """Kernels and the embedding take a format that is given for everything; norms keep their type."""
    model = bombus.build_model(LlamaSpec(**SIZES), "f8_e4m3fn")
    assert {path: str(format) for path, format in model.formats.items()} == {
        path: "f32" if path.endswith(".scale") else "f8_e4m3fn" for path in model.shapes
    }
    params = flat(model.init(jax.random.key(0)))
    embedding = np.asarray(params["embedder.token_embedding.embedding"])
    scale = np.asarray(params["embedder.token_embedding.scale_inv"])
    assert (embedding.dtype.name, scale.shape, scale.dtype) == ("float8_e4m3fn", (3, 2), np.float32)
    assert dequantize(embedding, scale, (128, 128)).std() == pytest.approx(0.02, rel=0.02)
    np.testing.assert_array_equal(params["output_norm.scale"], np.ones(192, np.float32))
    logits = jax.jit(model.apply)(nested(params), TOKENS).logits
    assert np.isfinite(np.asarray(logits)).all()


def test_build_model_refuses_types_a_parameter_cannot_take() -> None:
    """A norm has no tiles; the error names the rule, the parameters and the way out."""
    with pytest.raises(bombus.PolicyError) as caught:
        bombus.build_model(LlamaSpec(**{**SIZES, "num_blocks": 1}), {"norm": "f8_e4m3fn"})
    assert str(caught.value) == (
        "policy: policy rule 'norm': stores nothing as f8_e4m3fn, which is for weights (expected a parameter that "
        "ends in kernel or embedding, found decoder.blocks.0.output_norm.scale, "
        "decoder.blocks.0.self_attention_norm.scale, output_norm.scale). "
        "Give it f32, bf16 or f16, or a pattern that matches weights"
    )
    with pytest.raises(bombus.PolicyError) as caught:
        bombus.build_model(LlamaSpec(**SIZES), {"*.1.ffn.gate.kernel": "mxfp4", "*.1.ffn.gate.scale_inv": "bf16"})
    assert str(caught.value) == (
        "policy: parameter decoder.blocks.1.ffn.gate.scale_inv: cannot be stored as bf16, which rule "
        "'*.1.ffn.gate.scale_inv' asks for: the scales of mxfp4 have a type of their own"
    )


def test_cache_has_the_type_of_the_keys(tiny: Callable[..., Path]) -> None:
    """bf16 in a bf16 model, float32 under a float32 policy, and what the caller asks for."""
    folder = tiny("qwen3", "bf16")
    assert bombus.load_plan(folder).plan.model.init_cache(1, 4).layers[0].keys.codes.dtype == jnp.bfloat16
    model = bombus.load_plan(folder, policy=F32).plan.model
    assert model.init_cache(1, 4).layers[0].keys.codes.dtype == jnp.float32
    assert model.init_cache(1, 4, dtype="bfloat16").layers[1].values.codes.dtype == jnp.bfloat16


@pytest.mark.parametrize("entry", architectures(), ids=lambda entry: entry.name)
def test_every_tiny_checkpoint_is_whole(entry: Architecture, tmp_path: Path) -> None:
    """Each class: every parameter is read from its tensors and every tensor is used; FP8 codes stay as they are."""
    for name, head in entry.classes.items():
        folder = tiny_checkpoint(name, tmp_path / name, head=head)
        report = bombus.load_plan(folder, preserve_source_types=True)
        assert report.plan.model.spec.head == head
        assert {item.action for item in report.plan.entries} == {"keep"}
        assert report.plan.unused == ()
        low = [item.path for item in report.plan.entries if item.format.is_low]
        assert len(low) >= 8
        assert all(item.format.name == "f8_e4m3fn" for item in report.plan.entries if item.format.is_low)


@pytest.mark.parametrize("entry", architectures(), ids=lambda entry: entry.name)
def test_specs_survive_a_round_trip(entry: Architecture, tmp_path: Path) -> None:
    """from_hf(to_hf(spec)) is the spec, for every head, and with scaled rotary positions where there are any."""
    scaling = bombus.layers.Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    for name, head in entry.classes.items():
        spec = bombus.load_spec(tiny_checkpoint(name, tmp_path / name, "bf16", head=head))
        labels = 5 if head.endswith("classification") else 2
        changed = spec.configure(num_labels=labels, norm_epsilon=0.02)
        if changed.rotary is not None:
            changed = changed.configure(rotary=replace(changed.rotary, theta=5e5, scaling=scaling))
        assert entry.spec.from_hf(changed.to_hf(), head=head) == changed
