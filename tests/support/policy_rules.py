"""Parameters to write rules for, and random rules."""

from __future__ import annotations

from hypothesis import strategies as st

from bombus.policies import Policy

QUERY = "decoder.blocks.0.self_attention.query.kernel"
QUERY_TENSOR = "model.layers.0.self_attn.q_proj.weight"
PARAMETERS = {
    QUERY: QUERY_TENSOR,
    "decoder.blocks.0.ffn.gate.kernel": "model.layers.0.mlp.gate_proj.weight",
    "decoder.blocks.1.ffn.gate.kernel": "model.layers.1.mlp.gate_proj.weight",
    "embedder.token_embedding.embedding": "model.embed_tokens.weight",
    "output_norm.scale": "model.norm.weight",
}
BF16 = Policy(params="bf16", compute="bf16")

# A small alphabet, so that random rules often match, and often several of them.
_WORDS = st.sampled_from(["a", "b", "ab"])
PATHS = st.lists(_WORDS, min_size=1, max_size=3).map(".".join)
_GLOBS = st.lists(st.sampled_from(["a", "b", ".", "*", "?"]), min_size=1, max_size=5).map("".join)
_EXPRESSIONS = st.lists(st.sampled_from(["a", "b", r"\.", ".*", "[ab]", "(a|b)?"]), min_size=1, max_size=4).map("".join)
PATTERNS = st.one_of(PATHS, _GLOBS, _EXPRESSIONS.map("re:{}".format))
