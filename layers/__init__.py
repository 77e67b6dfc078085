"""Layers on which the models stand. Only they and the kernels know how a low-precision weight is stored."""

from bombus.layers.attention import Attention, AttentionContext, attend
from bombus.layers.block import Block
from bombus.layers.cache import Cache, empty_cache
from bombus.layers.dense import Dense, fp8_aware_dense
from bombus.layers.embedding import Embedding
from bombus.layers.feed_forward import GatedFeedForward
from bombus.layers.layer import Layer, initial_values
from bombus.layers.norm import RMSNorm
from bombus.layers.rotary import Llama3Scaling, Rotary, rotate

__all__ = [
    "Attention",
    "AttentionContext",
    "Block",
    "Cache",
    "Dense",
    "Embedding",
    "GatedFeedForward",
    "Layer",
    "Llama3Scaling",
    "RMSNorm",
    "Rotary",
    "attend",
    "empty_cache",
    "fp8_aware_dense",
    "initial_values",
    "rotate",
]
