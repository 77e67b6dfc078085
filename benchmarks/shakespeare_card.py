"""The model card of the Shakespeare model: what it is, what it was trained on and how, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bombus.models.qwen3 import Qwen3Spec


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card says.

    facts: rows about data and training. losses: how the model is loaded -> nats per character of the held-out text.
    contexts: how many tokens are seen at most -> the same, in float32.
    """

    spec: Qwen3Spec
    parameters: int
    facts: Mapping[str, str]
    losses: Mapping[str, float]
    contexts: Mapping[int, float]
    sample: str

    @property
    def loss_table(self) -> str:
        """The losses, and how much each is above the first."""
        first = next(iter(self.losses.values()))
        rows = [f"| {name} | {loss:.4f} | {loss / first - 1:+.2%} |" for name, loss in self.losses.items()]
        return "\n".join(["| weights | nats per character | against float32 |", "|---|---|---|", *rows])

    @property
    def context_table(self) -> str:
        """The losses by context."""
        rows = [f"| {context // 2 + 1} to {context} | {loss:.4f} |" for context, loss in self.contexts.items()]
        return "\n".join(["| a token is predicted from | nats per character |", "|---|---|", *rows])


_TEXT = """\
---
license: apache-2.0
language: en
library_name: bombus
pipeline_tag: text-generation
tags: [qwen3, fp8, jax]
---

# tiny-shakespeare-fp8

A small Qwen3 that writes in the manner of Shakespeare's plays, stored in block FP8. It ships with Bombus, so that
examples and tests have a real model without a download. Made by `benchmarks/train_shakespeare.py`, which also measured
everything below and wrote this card.

```python
import bombus

name = "bombus/tiny-shakespeare-fp8"
loaded = bombus.load_model(name, preserve_source_types=True)
print(bombus.generate(loaded, bombus.load_tokenizer(name), "ROMEO:\\n"))
```

## Model

| | |
|---|---|
| architecture | Qwen3: grouped-query attention, query and key norms, rotary positions, tied embeddings |
| parameters | {parameters:,} |
| blocks, hidden size, feed-forward size | {spec.num_blocks}, {spec.hidden_size}, {spec.intermediate_size} |
| heads | {spec.num_heads} of size {spec.head_dim}, {spec.num_kv_heads} for keys and values |
| vocabulary | {spec.vocab_size} tokens, byte-level BPE |
| stored as | kernels float8_e4m3fn with one float32 scale per tile of 128x128 (`weight_scale_inv`), the rest bfloat16 |
| positions | {spec.max_positions} |

## Training

| | |
|---|---|
{facts}

## Loss on the held-out text

Nats per character over the whole held-out text, each token predicted from the 129 to 256 tokens before it.

{losses}

In float32, by the length of the context; training saw at most {trained} tokens:

{contexts}

The configuration claims the longest context at which the loss is at most 1% above that of the shortest.

## A sample

Seed 0, after `ROMEO:`:

```text
{sample}
```

## Limits

It has read one megabyte. It knows no facts, follows no instructions, and loses the thread within a few speeches; what
it says is Shakespeare's manner without his sense, his time's prejudices included. Characters outside of English text of
the time are known as bytes only. The chat template turns a conversation into a play, in which the user is the
First Citizen and the model King Richard II; a system message opens the text. An answer ends with its speech, at the
first blank line (`stop_strings` in generation_config.json).

## Licence

The weights and this card: Apache-2.0, as Bombus. The text: William Shakespeare, public domain.
"""


def write_card(card: Card, path: Path) -> None:
    """Nothing; the file holds the card."""
    text = _TEXT.format(
        spec=card.spec,
        parameters=card.parameters,
        facts="\n".join(f"| {name} | {value} |" for name, value in card.facts.items()),
        losses=card.loss_table,
        contexts=card.context_table,
        trained=min(card.contexts),
        sample=card.sample.strip(),
    )
    path.write_text(text, encoding="utf-8")
