"""Model: a stateless model made of a spec, and of what its parameters are stored as and computed in."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import Weight
from bombus.layers import Cache, CacheFormatLike, Embedding, as_cache_format, empty_cache
from bombus.layers.layer import initial_values, initial_weight
from bombus.models.abstract import abstract_module, abstract_shapes, dotted, named_layers
from bombus.models.decoder import Output
from bombus.models.registry import Architecture, architecture_of
from bombus.models.spec import DecoderSpec
from bombus.models.storage import is_weight, nameable, part_paths, scale_path, storage_format
from bombus.models.tree import Params, flat, nested
from bombus.policies import Decision, as_precision
from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import DType, Format, find_format
from bombus.policies.mixed_precision import PolicyLike

__all__ = ["Model", "Params", "build_model", "decided_model", "flat", "nested", "weight_leaves"]

_DEFAULT_TYPE = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A pure function of parameters and tokens. It owns no arrays.

    decisions: the resolved policy of every parameter, by path; the scales that its weights have included.
    formats: what every parameter is stored as, by path; a weight's includes its scales.
    names: what the checkpoint calls every parameter that a rule can name, by path.
    main_type: the 16- or 32-bit type that low-precision weights are dequantized to where no policy says.
    """

    spec: DecoderSpec
    decisions: Mapping[str, Decision]
    formats: Mapping[str, Format]
    names: Mapping[str, str | None]
    main_type: DType = _DEFAULT_TYPE

    @property
    def architecture(self) -> Architecture:
        """The registry's entry for this model's spec."""
        return architecture_of(self.spec)

    @cached_property
    def abstract_params(self) -> Params:
        """The shape and type of every array of the parameters, as a nested dict of jax.ShapeDtypeStruct."""
        leaves = {dotted(key): value.get_value() for key, value in nnx.to_flat_state(self._split[1])}
        return nested({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()})

    @cached_property
    def stored(self) -> Mapping[str, DType]:
        """The type of every array of the parameters, by path."""
        return {path: leaf.dtype for path, leaf in flat(self.abstract_params).items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter as the model computes with it, by path, however it is stored."""
        return abstract_shapes(self.spec)

    def module(self, params: Params) -> nnx.Module:
        """An ordinary nnx.Module with these parameters bound in, for Flax users and for tracing."""
        graph, state = self._split
        values = flat(params)
        bound = [(key, variable.replace(values[dotted(key)])) for key, variable in nnx.to_flat_state(state)]
        return nnx.merge(graph, nnx.from_flat_state(bound))

    def apply(
        self,
        params: Params,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        """The model's Output for integer tokens (B, T). Pure: jit it, differentiate it, shard it.

        positions (B, T) default to the number of real tokens before each one; mask (B, T) is False at padding;
        `cache` holds earlier tokens and comes back updated in the output; `last_only` computes the logits of the
        last position only, (B, 1, V). Raises ValueError for tokens of a wrong shape or type, and for more
        tokens than a cache has slots.
        """
        tokens = jnp.asarray(tokens_BT)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers of shape (batch, tokens), not {tokens.dtype}{tokens.shape}")
        if positions is None and mask is None:
            self._check_learned_positions(tokens.shape[1], cache)
        if cache is not None:
            used = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
            if used + tokens.shape[1] > cache.capacity:
                raise ValueError(
                    f"{tokens.shape[1]} tokens do not fit: the cache has {cache.capacity - used} of its "
                    f"{cache.capacity} slots left"
                )
        return self.module(params)(tokens, positions=positions, mask=mask, cache=cache, last_only=last_only)

    def _check_learned_positions(self, tokens: int, cache: Cache | None) -> None:
        """Raise ValueError where tokens without padding go past the table: a lookup would take its last row."""
        learned = self.spec.position_embeddings
        known = cache is not None and not isinstance(cache.positions, jax.core.Tracer)
        seen = int(cache.positions.max()) if cache is not None and known else 0
        if 0 < learned < seen + tokens:
            raise ValueError(f"{tokens} tokens after {seen} do not fit: the model has {learned} learned positions")

    def init(self, key: jax.Array) -> Params:
        """Random parameters, stored as the policies say: normal(0, 0.02) kernels, ones and zeros elsewhere."""
        return jax.jit(self._init)(key)

    def init_cache(
        self, batch: int, length: int, *, dtype: Any = None, format: CacheFormatLike = None, lookback: int = 0
    ) -> Cache:
        """An empty cache for `batch` rows of `length` tokens.

        dtype: of what is not quantized; by default the type that keys are computed in. format: what keys and values
        are kept as, see CacheFormat. lookback: how many of the last slots `Cache.rewound` may take back, for which
        layers with a sliding window keep more. Raises PolicyError for a format that does not fit the model.
        """
        return empty_cache(
            [self.spec.window_of(index) for index in range(self.spec.num_blocks)],
            batch,
            length,
            shape=self.spec.cache_shape,
            dtype=jnp.dtype(self._activation_type if dtype is None else dtype),
            format=as_cache_format(format),
            lookback=lookback,
        )

    def tensor_names(self) -> dict[str, str | None]:
        """Our path -> the checkpoint's name, for every parameter that a rule can name."""
        return dict(self.names)

    def with_decisions(self, decisions: Mapping[str, Decision]) -> Model:
        """The same model under other policies. What is stored does not change, and neither do parameters."""
        return replace(self, decisions=dict(decisions))

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        abstract = abstract_module(self.spec, self.formats)
        for path, layer in named_layers(abstract).items():
            names = [str(key[-1]) for key, _ in nnx.to_flat_state(nnx.state(layer))]
            own = {name: f"{path}.{name}" for name in names if f"{path}.{name}" in self.decisions}
            layer.set_policies({name: self.decisions[leaf].policy for name, leaf in own.items()})
            if isinstance(layer, Embedding):
                layer.dequantized_type = self.main_type
        return nnx.split(abstract)

    @cached_property
    def _activation_type(self) -> DType:
        probe = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(lambda params, tokens: self._first_key(params, tokens), self.abstract_params, probe).dtype

    def _first_key(self, params: Params, tokens: jax.Array) -> jax.Array:
        module: Any = self.module(params)
        block = module.decoder.blocks[0]
        return block.self_attention.keys(block.attention_input(module.embed(tokens, tokens)))

    def _init(self, key: jax.Array) -> Params:
        values: dict[str, jax.Array] = {}
        for path, shape in self.shapes.items():
            # A key of its own for every path, so that other parameters do not change its values.
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            name, format = path.rpartition(".")[2], self.formats[path]
            if is_weight(path):
                values |= weight_leaves(path, initial_weight(name, own, shape, format))
            else:
                values[path] = initial_values(name, own, shape).astype(format.dtype)
        return nested(values)


def build_model(spec: DecoderSpec, policy: PolicyLike = None) -> Model:
    """A model without parameters: `model.init(key)` makes random ones, stored as `policy` says (default f32).

    Raises PolicyError for a rule that matches no parameter and for a format that a parameter cannot take.
    """
    mapping = architecture_of(spec).mapping
    template = dict.fromkeys(abstract_shapes(spec), find_format(_DEFAULT_TYPE))
    names = {path: mapping.tensor(path) for path in nameable(template)}
    precision = as_precision(policy)
    decisions = {path: precision.decide(path, name) for path, name in names.items()}
    problems = precision.problems(names)
    try:
        model = decided_model(spec, decisions, template, names, undecided=None, main_type=_DEFAULT_TYPE)
    except PolicyError as error:
        problems += error.problems
    if problems:
        raise PolicyError(problems, where="policy")
    return model


def decided_model(
    spec: DecoderSpec,
    decisions: Mapping[str, Decision],
    found: Mapping[str, Format],
    names: Mapping[str, str | None],
    *,
    only: Collection[str] | None = None,
    preserve: bool = False,
    undecided: DType | None,
    main_type: DType,
) -> Model:
    """The model whose parameters, found as `found`, are stored as the decisions say; all of them or `only` some.

    See storage_format and Model.

    Raises PolicyError that lists every format that a parameter cannot take.
    """
    formats: dict[str, Format] = {}
    problems: list[Problem] = []
    for path, format in found.items():
        formats[path] = format
        if only is not None and path not in only:
            continue
        try:
            formats[path] = storage_format(decisions, path, format, preserve=preserve, undecided=undecided)
        except PolicyError as error:
            problems += error.problems
    if problems:
        raise PolicyError(problems, where="policy")
    kept = {path: decisions[path] for path in formats}
    kept |= {scale_path(path): decisions[scale_path(path)] for path, format in formats.items() if format.is_low}
    return Model(spec=spec, decisions=kept, formats=formats, names=names, main_type=main_type)


def weight_leaves(path: str, weight: Weight) -> dict[str, jax.Array]:
    """path -> array for the codes and the parts of the weight at `path`."""
    paths = part_paths(path, weight.format, weight.shape)
    return {path: weight.codes, **{paths[part]: array for part, array in weight.parts.items()}}
