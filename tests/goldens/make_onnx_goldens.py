"""The golden of an export: onnxruntime's float32 logits of a real checkpoint's model.onnx, capp-gpt2.npz beside this.

`python tests/goldens/make_onnx_goldens.py` writes it again; it needs the `parity` extra. Nothing of ours runs here, and
nothing of transformers. Two tests load this file by its path: test_onnx_golden.py and test_parity_onnx.py.

Shapes: B batch, T tokens, S tokens with those of the cache, V vocabulary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
DATA = Path(os.environ.get("BOMBUS_TEST_DATA", FOLDER.parents[2] / "shared" / "data"))
NAME = "capp-gpt2"
VOCAB_SIZE, PAD = 53, 52
LENGTHS = {"left": (512, 97), "right": (61, 40)}  # of the rows of a batch, by its padding; 512 is every position
STRIDE = 7  # of the logits at a position, one in so many is stored


def make_batch(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of random tokens, the shorter padded at `side`, and their mask, (B, T) each."""
    longer, shorter = LENGTHS[side]
    tokens_BT = np.random.default_rng(longer).integers(0, PAD, (2, longer), np.int32)
    mask_BT = np.ones(tokens_BT.shape, np.bool_)
    mask_BT[1, slice(longer - shorter) if side == "left" else slice(shorter, None)] = False
    return np.where(mask_BT, tokens_BT, PAD).astype(np.int32), mask_BT


def open_onnx(folder: Path) -> Any:
    """onnxruntime's session of a folder's model.onnx, on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def run_onnx(
    session: Any, tokens_BT: np.ndarray, mask_BS: np.ndarray, cache: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (B, T, V) of tokens that come after those of a cache, and the cache with theirs.

    mask_BS: which tokens are real, those of the cache first.
    """
    batch, tokens = tokens_BT.shape
    if cache is None:
        empty = {it.name: it.shape for it in session.get_inputs() if it.name.startswith("past_key_values")}
        cache = {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in empty.items()}
    positions_BS = np.maximum(np.cumsum(mask_BS, axis=1) - 1, 0)
    inputs = {
        "input_ids": tokens_BT.astype(np.int64),
        "attention_mask": mask_BS.astype(np.int64),
        "position_ids": positions_BS[:, -tokens:].astype(np.int64),
        **cache,
    }
    found = dict(zip([it.name for it in session.get_outputs()], session.run(None, inputs), strict=True))
    return found.pop("logits"), {name.replace("present", "past_key_values"): value for name, value in found.items()}


def main() -> None:
    """Write the golden."""
    import onnxruntime

    session = open_onnx(DATA / NAME)
    arrays = {side: run_onnx(session, *make_batch(side))[0] for side in LENGTHS}
    path = FOLDER / f"{NAME}.npz"
    strided = {side: logits[..., ::STRIDE] for side, logits in arrays.items()}
    np.savez_compressed(path, **strided, versions=f"onnxruntime {onnxruntime.__version__}")
    largest = {side: f"{np.abs(logits).max():.3g}" for side, logits in arrays.items()}
    print(f"{path.name}: {path.stat().st_size} bytes, values up to {largest}")


if __name__ == "__main__":
    main()
