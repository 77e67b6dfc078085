"""Layers on which the models stand. Only they and the kernels know how a low-precision weight is stored."""

from bombus.kernels.native_rows import rotate
from bombus.layers.attention import Attention, attend, attend_to
from bombus.layers.block import Block
from bombus.layers.cache import Cache, empty_cache
from bombus.layers.cache_format import CacheFormat, CacheFormatLike, CacheShape, HeadScales, as_cache_format
from bombus.layers.cache_report import CacheReport
from bombus.layers.context import AttentionContext
from bombus.layers.dense import Dense, fp8_aware_dense
from bombus.layers.embedding import Embedding
from bombus.layers.experts import ClampedSwish, ExpertDense, Experts
from bombus.layers.feed_forward import FeedForward, GatedFeedForward, MixtureFeedForward
from bombus.layers.latent_attention import LatentAttention
from bombus.layers.layer import Layer, initial_values, initial_weight
from bombus.layers.layer_cache import LayerCache, Source
from bombus.layers.norm import LayerNorm, RMSNorm
from bombus.layers.rotary import Rotary
from bombus.layers.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    YarnScaling,
)
from bombus.layers.router import Router, Routing
from bombus.layers.stored import Stored

__all__ = [
    "Attention",
    "AttentionContext",
    "Block",
    "Cache",
    "CacheFormat",
    "CacheFormatLike",
    "CacheReport",
    "CacheShape",
    "ClampedSwish",
    "Dense",
    "DynamicScaling",
    "Embedding",
    "ExpertDense",
    "Experts",
    "FeedForward",
    "GatedFeedForward",
    "HeadScales",
    "LatentAttention",
    "Layer",
    "LayerCache",
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
    "Source",
    "Stored",
    "YarnScaling",
    "as_cache_format",
    "attend",
    "attend_to",
    "empty_cache",
    "fp8_aware_dense",
    "initial_values",
    "initial_weight",
    "rotate",
]
