"""What the Shakespeare model is trained on: the text, its tokenizer, and its batches.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
# Qwen2's pre-tokenizer, so that a blank line between speeches is never split from itself.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a training besides the text and the spec.

    rate: Muon's; Adam's, for the embedding and the norms, is 0.003. noise: the fraction of input tokens that are
    replaced. dropout: BPE dropout.
    """

    steps: int = 1400
    batch: int = 8
    context: int = 256
    rate: float = 0.02
    decay: float = 0.1
    noise: float = 0.05
    dropout: float = 0.1


def split(text: str) -> tuple[str, str]:
    """(what is trained on, what is held out): the first nine tenths and the last."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def train_tokenizer(text: str, vocab_size: int = 2000) -> tokenizers.Tokenizer:
    """A byte-level BPE of vocab_size entries."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def batches(
    tokenizer: tokenizers.Tokenizer, text: str, settings: Settings, *, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of (B, T) each, for step `start` and on; every pass over the text has tokens of its own.

    Without BPE dropout, which has no seed, the same for every start.
    """
    cutting = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    cutting.model.dropout = settings.dropout or None
    context, batch, words = settings.context, settings.batch, tokenizer.get_vocab_size()
    step, epoch = 0, 0
    while True:
        random = np.random.default_rng(epoch)
        ids = np.asarray(cutting.encode(text).ids, np.int32)
        offset = int(random.integers(context))
        rows = (len(ids) - 1 - offset) // context
        if rows < batch:
            raise SystemExit(f"the text has {max(rows, 0)} rows of {context} tokens, and a batch takes {batch}")
        order = random.permutation(rows)
        for first in range(0, rows - batch + 1, batch):
            at = offset + context * order[first : first + batch, None] + np.arange(context)
            # Also for a batch that is left out: the next ones depend on it.
            kept, others = random.random(at.shape) >= settings.noise, random.integers(0, words, at.shape, np.int32)
            if step >= start:
                yield np.where(kept, ids[at], others), ids[at + 1]
            step += 1
        epoch += 1
