"""Commands that run in this process, and what is asked of them: the sizes of a checkpoint, two of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Every token of the vocabulary is a byte or the end, so that generated text is not empty.
SIZES = {"preset": "original", "num_blocks": 1, "vocab_size": 257}
GATE, EMBEDDING = "decoder.blocks.0.ffn.gate.kernel", "embedder.token_embedding.embedding"
Run = Callable[..., tuple[int, str, str]]


def output(run: Run, *arguments: Any) -> str:
    """What a command that succeeds prints."""
    status, out, err = run(*arguments)
    assert (status, err) == (0, ""), err
    return out


def error(run: Run, *arguments: Any) -> str:
    """What a command that fails says: one line."""
    status, out, err = run(*arguments)
    assert (status, out) == (1, ""), out + err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err.removesuffix("\n")
