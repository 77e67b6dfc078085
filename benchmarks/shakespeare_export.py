"""The trained Shakespeare model as a Hugging Face folder in block FP8, measured as it is loaded from there.

train_shakespeare.py calls `export`. Shapes: B batch, T tokens.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tokenizers
from safetensors.numpy import save_file
from shakespeare_card import Card, write_card
from shakespeare_data import END

import bombus
from bombus.loader.save import config_json
from bombus.models import Model, Params
from bombus.models.model import flat
from bombus.models.qwen3 import Qwen3Spec

MOST_BYTES = 4_000_000
MOST_NATS = 1.70
MOST_WORSE = 1.01
CONTEXTS = (256, 512, 1024)
KEPT = {"preserve_source_types": True}
# name -> how a folder is loaded; the first row is the folder before it is quantized.
LOADS: Mapping[str, Mapping[str, Any]] = {
    "float32, before quantizing": {},
    "FP8 and bf16 as stored, computed in float32": {**KEPT, "policy": bombus.create_policy(compute="f32")},
    "FP8 and bf16 as stored, computed in bf16": KEPT,
    "dequantized to bf16 (the default), computed in bf16": {},
}
SAMPLING = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
# A conversation as a play. The system's message opens the text; speeches end with a blank line, and so do answers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
    "{% elif message.role == 'user' %}First Citizen:\n{{ message.content | trim }}\n\n"
    "{% elif message.role == 'assistant' %}KING RICHARD II:\n{{ message.content | trim }}\n\n"
    "{% else %}{{ raise_exception('the roles of this play are system, user and assistant') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}KING RICHARD II:\n{% endif %}"
)


def nats(model: Model, params: Params, inputs_BT: jax.Array, targets_BT: jax.Array, **options: Any) -> jax.Array:
    """The negative log-probability of every target, (B, T)."""
    logits_BTV = model.apply(params, inputs_BT, **options).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


def nats_per_character(
    model: Model, params: Params, tokenizer: tokenizers.Tokenizer, text: str, *, context: int = 256
) -> float:
    """The mean negative log-probability of a character of `text`.

    Every token but the first is counted once, after context/2 + 1 to `context` tokens, or all there are at the
    beginning. The characters of the first one do not count.
    """
    ids = np.asarray(tokenizer.encode(text).ids, np.int32)
    half, rows = context // 2, max(1, 8192 // context)
    score = jax.jit(lambda params, inputs, targets, real: nats(model, params, inputs, targets, mask=real))
    total, counted = 0.0, 0
    starts = np.arange(0, len(ids) - 1, half)
    for chunk in np.split(starts, range(rows, len(starts), rows)):
        at = chunk[:, None] + np.arange(-half, half)
        at = np.pad(at, ((0, rows - len(chunk)), (0, 0)), mode="edge")
        real = (at >= 0) & (at < len(ids) - 1)
        inside = np.clip(at, 0, len(ids) - 2)
        losses = np.asarray(score(params, ids[inside], ids[inside + 1], real))[: len(chunk)]
        wanted = real[: len(chunk)] & (np.arange(context) >= half)
        total, counted = total + float(losses[wanted].sum(dtype=np.float64)), counted + int(wanted.sum())
    assert counted == len(ids) - 1
    return total / (len(text) - len(tokenizer.decode([int(ids[0])])))


def usable_context(losses: Mapping[int, float]) -> int:
    """The longest context up to which no loss (context -> nats per character) is over MOST_WORSE of the shortest's."""
    shortest = losses[min(losses)]
    good = takewhile(lambda context: losses[context] <= MOST_WORSE * shortest, sorted(losses))
    return max(good)


def export(
    spec: Qwen3Spec,
    params: Params,
    tokenizer: tokenizers.Tokenizer,
    held_out: str,
    folder: Path,
    facts: Mapping[str, str],
) -> list[str]:
    """What is wrong with the result, nothing for a good one; `folder` becomes the model's, with its card.

    facts: rows of the card about data and training. Measures the losses and prints them as tables.
    """
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "float32"
        model = bombus.build_model(spec)
        write_float32(model, params, plain)
        source = bombus.load_model(plain)
        contexts = {
            context: nats_per_character(source.model, source.params, tokenizer, held_out, context=context)
            for context in CONTEXTS
        }
        model = bombus.build_model(spec.configure(max_positions=usable_context(contexts)))
        write_float32(model, params, plain)
        made = Path(temporary) / "made"
        write_folder(plain, tokenizer, made)
        losses = {}
        for number, (name, options) in enumerate(LOADS.items()):
            loaded = bombus.load_model(made if number else plain, **options)
            losses[name] = nats_per_character(loaded.model, loaded.params, tokenizer, held_out)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        card = Card(
            spec=model.spec, parameters=count, facts=facts, losses=losses, contexts=contexts, sample=sample(made)
        )
        write_card(card, made / "README.md")
        print(card.loss_table, card.context_table, sep="\n\n", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            shutil.copy(path, folder / path.name)
    return problems(losses, folder)


def problems(losses: Mapping[str, float], folder: Path) -> list[str]:
    """What keeps a model from being shipped; see MOST_NATS, MOST_WORSE and MOST_BYTES."""
    full, kept = list(losses.values())[:2]
    size = sum(path.stat().st_size for path in folder.iterdir())
    found = []
    if not full <= MOST_NATS:
        found.append(f"{full:.4f} nats per character in float32, at most {MOST_NATS} wanted")
    if not kept <= MOST_WORSE * full:
        found.append(f"FP8 is {kept / full - 1:.2%} above float32, at most {MOST_WORSE - 1:.0%} wanted")
    if size > MOST_BYTES:
        found.append(f"{size:,} bytes, at most {MOST_BYTES:,} wanted")
    return found


def write_float32(model: Model, params: Params, folder: Path) -> None:
    """The parameters as they were trained, as a checkpoint that load_model reads."""
    folder.mkdir(exist_ok=True)
    names = model.tensor_names()
    save_file(
        {str(names[path]): np.asarray(leaf, np.float32) for path, leaf in flat(params).items()},
        folder / "model.safetensors",
    )
    write_json(folder / "config.json", config_json(model))


def write_folder(plain: Path, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Everything of the model's folder but the card: kernels in FP8 tiles, each with its scale, the rest in bf16."""
    policy = {"default": "bf16", "*.kernel": "f8_e4m3fn"}
    bombus.save_model(bombus.quantize(bombus.load_model(plain), policy), folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    end = tokenizer.token_to_id(END)
    own = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    write_json(folder / "tokenizer_config.json", own)
    generation = {"do_sample": True, **SAMPLING, "max_new_tokens": 200, "eos_token_id": end, "stop_strings": ["\n\n"]}
    write_json(folder / "generation_config.json", generation)


def sample(folder: Path, prompt: str = "ROMEO:\n", **options: Any) -> str:
    """A text of the model, several speeches long: the stop string of its generation_config.json is left out."""
    loaded = bombus.load_model(folder, **KEPT)
    tokenizer = bombus.load_tokenizer(folder)
    settings = {"max_new_tokens": 160, "seed": 0, **SAMPLING, **options}
    text = bombus.generate(loaded, tokenizer, prompt, generation_config=bombus.GenerationConfig(), **settings)
    return prompt + text


def write_json(path: Path, value: Any) -> None:
    """Nothing; the file holds `value`."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
