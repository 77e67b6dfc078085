"""Meta's layout: the same parameters as Hugging Face's, from any number of shards, and what does not fit together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from meta_files import interleaved, meta_params, meta_tensors, write_meta
from tokenizer_files import llama_file

import bombus
from bombus.models.model import flat

SIZES = {"preset": "original", "num_blocks": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 320}


@pytest.fixture(scope="module")
def base(tiny: Callable[..., Path]) -> Path:
    """Four heads of query, two of key; tied."""
    return tiny("llama", "f32", **SIZES)


def write(base: Path, folder: Path, shards: int = 1, embedding_axis: int = 1, **changes: object) -> Path:
    return write_meta(folder, meta_tensors(base, shards, embedding_axis), meta_params(base, **changes))


def equal(one: bombus.LoadedModel, other: bombus.LoadedModel) -> bool:
    ours, theirs = flat(one.params), flat(other.params)
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[path], theirs[path]) for path in ours)


def refusal(folder: Path) -> str:
    with pytest.raises(bombus.LoadError) as caught:
        bombus.load_model(folder)
    return str(caught.value)


def test_the_text_is_that_of_hugging_faces_layout(data: Path, tmp_path: Path) -> None:
    """A trained model, with its tokenizer beside it."""
    base = data / "stories260K-hf"
    folder = write(base, tmp_path, shards=2)
    (folder / "tokenizer.model").write_bytes(llama_file(base / "tokenizer.json"))
    loaded = bombus.load_model(folder)
    assert equal(loaded, bombus.load_model(base))
    tokenizer = bombus.load_tokenizer(folder)
    text = bombus.generate(loaded, tokenizer, "Once upon a time", max_new_tokens=100)
    golden = (base / "golden_greedy.txt").read_text()
    assert len(text) > 200
    assert golden.startswith("Once upon a time" + text)


@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["rows, as Llama 3", "columns, as Llama 1 and 2"])
@pytest.mark.parametrize("shards", [1, 2])
def test_shards_are_joined_to_the_same_parameters(shards: int, embedding_axis: int, base: Path, tmp_path: Path) -> None:
    loaded = bombus.load_model(write(base, tmp_path, shards, embedding_axis))
    assert equal(loaded, bombus.load_model(base))
    assert loaded.spec.tie_word_embeddings
    assert loaded.spec.intermediate_size == 64
    assert loaded.spec.vocab_size == 320


def test_a_policy_applies_to_joined_tensors(base: Path, tmp_path: Path) -> None:
    policy = {"default": "int8", "embedding": "bf16"}
    assert equal(bombus.load_model(write(base, tmp_path, 2), policy=policy), bombus.load_model(base, policy=policy))


def test_an_output_of_its_own_is_the_head(tiny: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny("llama", "f32", **SIZES, tie_word_embeddings=False)
    loaded = bombus.load_model(write(base, tmp_path, 2))
    assert not loaded.spec.tie_word_embeddings
    assert equal(loaded, bombus.load_model(base))


def test_the_order_of_rows_is_that_of_a_reshape() -> None:
    """The permutation of the tests, written another way: as transformers' conversion has it."""
    rows = np.arange(24.0).reshape(12, 2)
    theirs = interleaved(rows, 2)
    back = theirs.reshape(2, 3, 2, 2).swapaxes(1, 2).reshape(12, 2)
    np.testing.assert_array_equal(back, rows)
    assert not np.array_equal(theirs, rows)


def test_the_configuration_is_read_without_the_tensors(base: Path, tmp_path: Path) -> None:
    folder = write(base, tmp_path, rope_theta=500000.0, use_scaled_rope=True, rope_scaling_factor=32)
    spec = bombus.load_spec(folder)
    scaling = spec.rotary.scaling
    assert spec.rotary.theta == 500000.0
    assert scaling is not None
    assert (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (32.0, 1.0, 4.0)
    assert scaling.original_max_positions == 8192
    assert spec == bombus.load_plan(folder).plan.model.spec


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
        ({"max_seq_len": 77}, 77),
    ],
    ids=str,
)
def test_positions_are_those_of_the_release(changes, positions, base: Path, tmp_path: Path) -> None:
    params = {name: value for name, value in meta_params(base).items() if name != "max_seq_len"}
    assert bombus.load_spec(write_meta(tmp_path, meta_tensors(base), params | changes)).max_positions == positions


def test_fields_that_are_missing_or_not_known_are_all_listed(base: Path, tmp_path: Path) -> None:
    params = meta_params(base, quantization_args={"scheme": "int4"}, n_layers=0)
    del params["norm_eps"]
    assert refusal(write_meta(tmp_path, meta_tensors(base), params)) == (
        "params.json: 3 problems\n"
        "  - field 'norm_eps': is missing\n"
        "  - field 'quantization_args': is not supported (found {'scheme': 'int4'}). Known: dim, n_layers, n_heads, "
        "norm_eps, n_kv_heads, vocab_size, multiple_of, ffn_dim_multiplier, max_batch_size, max_seq_len, rope_theta, "
        "use_scaled_rope, ...\n"
        "  - field 'n_layers': must be a positive integer (found 0)"
    )


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("dim", 32.0, "a positive integer"),
        ("n_heads", True, "a positive integer"),
        ("max_seq_len", "77", "a positive integer"),
        ("norm_eps", None, "a positive number"),
        ("use_scaled_rope", 1, "true or false"),
        ("rope_theta", "10000", "a positive number"),
        ("rope_scaling_factor", float("inf"), "a positive number"),
    ],
)
def test_a_field_of_another_type_is_refused(name, value, what, base: Path, tmp_path: Path) -> None:
    folder = write(base, tmp_path, **{name: value})
    assert refusal(folder) == f"params.json: field {name!r}: must be {what} (found {value!r})"


def test_null_is_a_field_that_is_not_there(base: Path, tmp_path: Path) -> None:
    """Found by fuzzing."""
    nothing = dict.fromkeys(("rope_theta", "use_scaled_rope", "rope_scaling_factor", "ffn_dim_multiplier"))
    assert equal(bombus.load_model(write(base, tmp_path, **nothing)), bombus.load_model(base))


def test_pieces_that_do_not_fit_together_are_all_listed(base: Path, tmp_path: Path) -> None:
    one, two = meta_tensors(base, 2)
    del two["norm.weight"]
    one["layers.0.attention.bias"] = np.zeros(3, np.float32)
    two["layers.1.attention.wo.weight"] = np.zeros((32, 15), np.float32)
    found = refusal(write_meta(tmp_path, [one, two], meta_params(base)))
    assert found == (
        f"{tmp_path}: 3 problems\n"
        "  - tensor layers.1.attention.wo.weight: has pieces that do not fit together (found float32[32, 16], "
        "float32[32, 15])\n"
        "  - tensor norm.weight: is in 1 of 2 shards\n"
        "  - tensor layers.0.attention.bias: is not a tensor of Llama"
    )


def test_a_norm_that_differs_between_shards_is_refused(base: Path, tmp_path: Path) -> None:
    one, two = meta_tensors(base, 2)
    two["layers.1.ffn_norm.weight"] = two["layers.1.ffn_norm.weight"] + np.float32(1)
    found = refusal(write_meta(tmp_path, [one, two], meta_params(base)))
    assert found == (
        f"{tmp_path / 'consolidated.01.pth'}: tensor model.layers.1.post_attention_layernorm.weight: is another than "
        "in consolidated.00.pth"
    )


def test_a_missing_shard_is_seen_in_the_shapes(base: Path, tmp_path: Path) -> None:
    folder = write(base, tmp_path, 2, embedding_axis=0)
    (folder / "consolidated.01.pth").unlink()
    assert "model.layers.0.self_attn.q_proj.weight: does not fit parameter" in refusal(folder)


def test_hugging_faces_files_come_first(base: Path, tmp_path: Path) -> None:
    """Meta's are often there beside them, and may be damaged without harm."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    write(base, tmp_path)
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    assert equal(bombus.load_model(tmp_path), bombus.load_model(base))
