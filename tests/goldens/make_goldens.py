"""Goldens: what transformers computes in float32, as small .npz files beside this script.

`python tests/goldens/make_goldens.py [NAME ...]` writes them again; it needs the `parity` extra. The weights are not
stored: tiny_checkpoint makes the same ones from the same arguments. tests/models/test_goldens.py and tests/parity read
CASES, and load this file by its path.

Shapes: B batch, T tokens, V what the head returns at a position.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from bombus.layers import Rotary
from bombus.testing import tiny_checkpoint

FOLDER = Path(__file__).resolve().parent
DATA = Path(os.environ.get("BOMBUS_TEST_DATA", FOLDER.parents[2] / "shared" / "data"))
TOKENS = 24
SHORTER = 17  # real tokens of the second row of a padded batch
STRIDE = 11  # of the outputs at a position, one in so many is stored; prime to all sizes
PAD = 0

# An epsilon and a theta that are nobody's default: with 1e-6 a wrong epsilon would not show.
_ODD = {"norm_epsilon": 0.02, "rotary": Rotary(theta=31_000.0)}
# What the zoo (zoo_cases.py) is not about: name -> (architecture, arguments of tiny_checkpoint, side of the padding)
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "qwen3_tied": ("qwen3", _ODD, None),
    "qwen3_untied": ("qwen3", {"tie_word_embeddings": False}, None),
    "qwen3_attention_bias": ("qwen3", {"attention_bias": True}, None),
    "qwen3_left_padding": ("qwen3", _ODD, "left"),
    "llama_tied": ("llama", _ODD, None),
    "llama_untied": ("llama", {"tie_word_embeddings": False}, None),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}, None),
    "llama_gelu": ("llama", {"activation": "gelu_pytorch_tanh"}, None),
}
# A trained model, on the text that it writes itself: the first tokens are the prompt, the rest is greedy.
TRAINED = "stories260K-hf"
PROMPT = "Once upon a time"
NEW_TOKENS = 64


def make_batch(vocab_size: int, padding: str | None, seed: int, tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of random tokens and their mask, (B, T) each; with padding the second row is shorter."""
    tokens_BT = np.random.default_rng(seed).integers(PAD + 1, vocab_size, (2, tokens), np.int32)
    mask_BT = np.ones(tokens_BT.shape, np.bool_)
    if padding is not None:
        mask_BT[1, SHORTER:] = False
    if padding == "left":
        mask_BT = mask_BT[:, ::-1]
    return np.where(mask_BT, tokens_BT, PAD).astype(np.int32), np.ascontiguousarray(mask_BT)


def read_transformers(folder: Path, dtype: str = "float32", **options: Any) -> Any:
    """transformers' model of a folder, of the class that its config.json names, in torch's `dtype`.

    Raises ValueError for a tensor that transformers misses or does not use, which it only warns of.
    """
    import torch
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, found = getattr(transformers, name).from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True, **options
    )
    if any(found.values()):
        raise ValueError(f"transformers does not take {folder} as it is: {found}")
    return model.eval()


def run_transformers(model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    """float32 logits (B, T, V), (B, L) of a classification, or the hidden state (B, T, D) of a base model."""
    import torch

    model.config.pad_token_id = PAD  # a classification looks for the last token that is not this one
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(tokens_BT).long(), attention_mask=torch.from_numpy(mask_BT).long())
    return (output.logits if "logits" in output else output.last_hidden_state).float().numpy()


def fingerprint(folder: Path) -> dict[str, list[float]]:
    """The first values of every tensor of a float32 checkpoint, by name, to three digits.

    Not a hash: on another machine's mathematical library the last bit of a few random numbers may differ.
    """
    tensors = load_file(folder / "model.safetensors")
    return {name: [float(f"{value:.3g}") for value in tensors[name].ravel()[:4]] for name in sorted(tensors)}


def _write(name: str, folder: Path, tokens_BT: np.ndarray, mask_BT: np.ndarray, model: Any) -> None:
    import torch
    import transformers

    output = run_transformers(model, tokens_BT, mask_BT)
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(
        path,
        tokens=tokens_BT,
        mask=mask_BT,
        output=output if output.ndim == 2 else output[..., ::STRIDE],
        config=(folder / "config.json").read_text(),
        fingerprint=json.dumps(fingerprint(folder)),
        versions=f"transformers {transformers.__version__}, torch {torch.__version__}",
    )
    print(f"{path.name}: {path.stat().st_size} bytes, values up to {np.abs(output).max():.3g}")


def _write_trained(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    model = read_transformers(folder)
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False).to(torch.int32).numpy()
    _write(TRAINED, folder, tokens, np.ones(tokens.shape, np.bool_), model)


def main() -> None:
    """Write the goldens that are named on the command line, by default all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    names = parser.parse_args().names or [*CASES, TRAINED]
    for name in names:
        if name == TRAINED:
            _write_trained(DATA / TRAINED)
            continue
        architecture, options, padding = CASES[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = tiny_checkpoint(architecture, temporary, "f32", **options)
            vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
            _write(name, folder, *make_batch(vocab_size, padding, seed=0), read_transformers(folder))


if __name__ == "__main__":
    main()
