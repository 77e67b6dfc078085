"""Meta's own layout of Llama: params.json, and consolidated.NN.pth with a piece of every tensor in each.

Sources: Meta's llama-models (model.py, args.py) and transformers' convert_llama_weights_to_hf.py. Pieces are joined
by a written table. Meta rotates neighbouring values of a head, Hugging Face its halves: rows of queries and keys are
put in that order when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bombus.loader.tensors import TensorInfo, empty
from bombus.policies.errors import CheckpointError, Problem, SpecError, closest

PARAMS = "params.json"
SHARD = "consolidated.{:02d}.pth"
# Theirs -> Hugging Face's name, and the axis along which the pieces are joined; None: every shard has all of it.
_LAYERS: Mapping[str, tuple[str, int | None]] = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
_ENDS: Mapping[str, tuple[str, int | None]] = {
    # Llama 3 cuts the embedding by rows, 1 and 2 by columns: seen in the shapes.
    "tok_embeddings": ("model.embed_tokens", 0),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}
_IGNORED = ("rope.freqs",)
_REQUIRED = ("dim", "n_layers", "n_heads", "norm_eps")
# `multiple_of` and `ffn_dim_multiplier` say how wide the feed-forward is, which the tensors show;
# `max_batch_size` is of Meta's program.
_OPTIONAL = (
    *("n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size", "max_seq_len"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor"),
)
_TYPES = (
    (("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len"), (int,), "a positive integer"),
    (("norm_eps", "rope_theta", "rope_scaling_factor"), (int, float), "a positive number"),
)
# (dim, n_layers) of Llama 3.2 1B and 3B, whose files do not say that their factor is not 8.
_FACTOR_32 = ((2048, 16), (3072, 28))


@dataclass(frozen=True, kw_only=True)
class JoinedTensor(TensorInfo):
    """A tensor in pieces: joined along `axis`, or all the same where that is None.

    heads: how many heads the rows are those of, whose order is to change; 0 for none.
    """

    parts: tuple[TensorInfo, ...]
    axis: int | None
    heads: int = 0

    def read(self, name: str) -> np.ndarray:
        """See TensorInfo. Raises CheckpointError, too, where pieces that should be the same are not."""
        values = self.parts[0].read(name) if self.axis is None else empty(self.shape, self.dtype)
        first = 0
        for part in self.parts:
            piece = part.read(name)
            if self.axis is None:
                if piece.tobytes() != values.tobytes():
                    problem = Problem(subject=f"tensor {name}", message=f"is another than in {self.file.name}")
                    raise CheckpointError(problem, where=str(part.file))
                continue
            last = first + part.shape[self.axis]
            values[(slice(None),) * self.axis + (slice(first, last),)] = piece
            first = last
        return _halves(values, self.heads) if self.heads else values


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads x pairs x 2) as (heads x 2 x pairs)."""
    result = empty(values.shape, values.dtype)
    pairs = values.shape[0] // heads // 2
    split = values.reshape(heads, pairs, 2, -1).swapaxes(1, 2)
    result.reshape(heads, 2, pairs, -1)[...] = split
    return result


def read_meta(
    params: Mapping[str, Any], shards: Sequence[Mapping[str, TensorInfo]], where: str
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """(the config.json of Hugging Face's layout, its tensors) of params.json and the headers of all shards.

    Raises SpecError for fields that are missing or not known, CheckpointError for tensors that do not fit together.
    """
    config = _read_params(params)
    problems: list[Problem] = []
    heads = {"self_attn.q_proj": params["n_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    tensors: dict[str, TensorInfo] = {}
    for theirs in dict.fromkeys(name for shard in shards for name in shard):
        if theirs in _IGNORED:
            continue
        name, axis = _name(theirs)
        parts = tuple(shard[theirs] for shard in shards if theirs in shard)
        if name is None or len(parts) < len(shards):
            message = "is not a tensor of Llama" if name is None else f"is in {len(parts)} of {len(shards)} shards"
            problems.append(Problem(subject=f"tensor {theirs}", message=message))
            continue
        if theirs == "tok_embeddings.weight" and len(parts) > 1 and parts[0].shape[1:] != (params["dim"],):
            axis = 1
        rotated = next((count for layer, count in heads.items() if name.endswith(f"{layer}.weight")), 0)
        joined = _join(theirs, parts, axis, rotated, problems)
        if joined is not None:
            tensors[name] = joined
    gate, embedding = tensors.get("model.layers.0.mlp.gate_proj.weight"), tensors.get("model.embed_tokens.weight")
    if not problems and (gate is None or embedding is None):
        problems.append(Problem(subject="checkpoint", message="has no embedding or no feed-forward"))
    if problems or gate is None or embedding is None:
        raise CheckpointError(problems, where=where)
    config |= {
        "intermediate_size": gate.shape[0],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    return config, tensors


def _read_params(params: Mapping[str, Any]) -> dict[str, Any]:
    known = (*_REQUIRED, *_OPTIONAL)
    problems = [Problem(subject=f"field {name!r}", message="is missing") for name in _REQUIRED if name not in params]
    problems += [
        Problem(
            subject=f"field {name!r}",
            message="is not supported",
            found=repr(value)[:80],
            remedy=closest(name, known),
        )
        for name, value in params.items()
        if name not in known
    ]
    # Null is what a field says that is not there.
    given = {name: value for name, value in params.items() if value is not None or name in _REQUIRED}
    problems += [
        Problem(subject=f"field {name!r}", message=f"must be {what}", found=repr(given[name])[:80])
        for names, types, what in _TYPES
        for name in names
        if name in given and (type(given[name]) not in types or not 0 < given[name] < math.inf)
    ]
    scaled = given.get("use_scaled_rope", False)
    if type(scaled) is not bool:
        problems.append(
            Problem(subject="field 'use_scaled_rope'", message="must be true or false", found=repr(scaled)[:80])
        )
    if problems:
        raise SpecError(problems, where=PARAMS)
    params = given
    theta = params.get("rope_theta", 10000.0)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": theta,
        "max_position_embeddings": params.get("max_seq_len") or _max_positions(params, scaled),
    }
    if scaled:
        default = 32.0 if (params["dim"], params["n_layers"]) in _FACTOR_32 else 8.0
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": params.get("rope_scaling_factor") or default,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def _max_positions(params: Mapping[str, Any], scaled: bool) -> int:
    """What the release was trained for, as transformers' conversion has it."""
    if scaled:
        return 131072
    if params.get("rope_theta", 0) >= 500000:
        return 8192
    return 2048 if params["norm_eps"] == 1e-6 else 4096  # Llama 1 and 2


def _name(theirs: str) -> tuple[str | None, int | None]:
    """(Hugging Face's name of a tensor, the axis of its pieces); (None, None) for one that is not Llama's."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", theirs)
    if match and match[2] in _LAYERS:
        layer, axis = _LAYERS[match[2]]
        return f"model.layers.{match[1]}.{layer}.weight", axis
    end, axis = _ENDS.get(theirs.removesuffix(".weight"), (None, None))
    return None if end is None else f"{end}.weight", axis


def _join(
    theirs: str, parts: tuple[TensorInfo, ...], axis: int | None, heads: int, problems: list[Problem]
) -> TensorInfo | None:
    """The whole of a tensor, or a problem with its pieces."""
    first = parts[0]
    shapes = {part.shape for part in parts}
    rows = sum(part.shape[0] for part in parts) if first.shape else 0
    matrix = len(first.shape) == 2
    if len({part.dtype for part in parts}) > 1 or len(shapes) > 1 or (axis is not None and not matrix):
        found = ", ".join(f"{part.dtype.name}{list(part.shape)}" for part in parts)
        problems.append(Problem(subject=f"tensor {theirs}", message="has pieces that do not fit together", found=found))
        return None
    if heads and rows % (2 * heads):
        message = f"has rows that are not those of {heads} heads"
        problems.append(Problem(subject=f"tensor {theirs}", message=message, found=f"{rows} rows in all"))
        return None
    if len(parts) == 1 and not heads:
        return first
    shape = list(first.shape)
    if axis is not None:
        shape[axis] *= len(parts)
    return JoinedTensor(
        dtype=first.dtype,
        shape=tuple(shape),
        file=first.file,
        start=first.start,
        stop=first.stop,
        parts=parts,
        axis=axis,
        heads=heads,
    )
