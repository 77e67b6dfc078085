"""Layers on which the models stand. Only they and the kernels know how a low-precision weight is stored."""

from bombus.layers.attention import Attention, AttentionContext, attend
from bombus.layers.block import Block
from bombus.layers.cache import Cache, CacheShape, empty_cache
from bombus.layers.dense import Dense, fp8_aware_dense
from bombus.layers.embedding import Embedding
from bombus.layers.experts import ClampedSwish, ExpertDense, Experts
from bombus.layers.feed_forward import FeedForward, GatedFeedForward, MixtureFeedForward
from bombus.layers.latent_attention import LatentAttention
from bombus.layers.layer import Layer, initial_values, initial_weight
from bombus.layers.norm import LayerNorm, RMSNorm
from bombus.layers.rotary import Rotary, rotate
from bombus.layers.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    YarnScaling,
)
from bombus.layers.router import Router, Routing

__all__ = [
    "Attention",
    "AttentionContext",
    "Block",
    "Cache",
    "CacheShape",
    "ClampedSwish",
    "Dense",
    "DynamicScaling",
    "Embedding",
    "ExpertDense",
    "Experts",
    "FeedForward",
    "GatedFeedForward",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "MixtureFeedForward",
    "RMSNorm",
    "Rotary",
    "Router",
    "Routing",
    "Scaling",
    "YarnScaling",
    "attend",
    "empty_cache",
    "fp8_aware_dense",
    "initial_values",
    "initial_weight",
    "rotate",
]
