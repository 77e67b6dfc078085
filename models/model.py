"""Model: a stateless model made of a spec, and of what its parameters are stored as and computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import quantize
from bombus.layers import Cache, Dense, Layer, empty_cache
from bombus.models.decoder import Output
from bombus.models.registry import Architecture, architecture_of
from bombus.models.spec import DecoderSpec
from bombus.policies import Decision, as_precision, resolve_type
from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import FORMATS, DType, is_low_precision, type_name
from bombus.policies.mixed_precision import PolicyLike

Params: TypeAlias = dict[str, Any]
_DEFAULT_TYPE = jnp.dtype(jnp.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A pure function of parameters and tokens. It owns no arrays.

    decisions: the resolved policy of every parameter, by path.
    stored: the type in which every parameter is stored, by path; scales of FP8 kernels included.
    tiles: the block shape of every kernel that is stored in FP8, by the path of its layer.
    """

    spec: DecoderSpec
    decisions: Mapping[str, Decision]
    stored: Mapping[str, DType]
    tiles: Mapping[str, tuple[int, int]]

    @property
    def architecture(self) -> Architecture:
        """The registry's entry for this model's spec."""
        return architecture_of(self.spec)

    @cached_property
    def abstract_params(self) -> Params:
        """The shape and type of every parameter, as a nested dict of jax.ShapeDtypeStruct."""
        shapes = {_path(key): value.get_value().shape for key, value in nnx.to_flat_state(self._split[1])}
        return nested({path: jax.ShapeDtypeStruct(shape, self.stored[path]) for path, shape in shapes.items()})

    def module(self, params: Params) -> nnx.Module:
        """An ordinary nnx.Module with these parameters bound in, for Flax users and for tracing."""
        graph, state = self._split
        values = flat(params)
        bound = [(key, variable.replace(values[_path(key)])) for key, variable in nnx.to_flat_state(state)]
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
        if cache is not None:
            used = 0 if isinstance(cache.length, jax.core.Tracer) else int(cache.length)
            if used + tokens.shape[1] > cache.capacity:
                raise ValueError(
                    f"{tokens.shape[1]} tokens do not fit: the cache has {cache.capacity - used} of its "
                    f"{cache.capacity} slots left"
                )
        return self.module(params)(tokens, positions=positions, mask=mask, cache=cache, last_only=last_only)

    def init(self, key: jax.Array) -> Params:
        """Random parameters, stored as the policies say: normal(0, 0.02) kernels, ones and zeros elsewhere."""
        return jax.jit(self._init)(key)

    def init_cache(self, batch: int, length: int, *, dtype: Any = None) -> Cache:
        """An empty cache for `batch` rows of `length` tokens, by default in the type that keys are computed in."""
        return empty_cache(
            self.spec.num_blocks,
            batch,
            length,
            num_kv_heads=self.spec.num_kv_heads,
            head_dim=self.spec.head_dim,
            dtype=jnp.dtype(self._activation_type if dtype is None else dtype),
        )

    def tensor_names(self) -> dict[str, str | None]:
        """Our path -> the checkpoint's name, for every parameter."""
        return {path: self.architecture.mapping.tensor(path) for path in flat(self.abstract_params)}

    def with_decisions(self, decisions: Mapping[str, Decision]) -> Model:
        """The same model under other policies. What is stored does not change, and neither do parameters."""
        return replace(self, decisions=dict(decisions))

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        abstract = abstract_module(self.spec, self.tiles)
        for path, layer in named_layers(abstract).items():
            names = [key[-1] for key, _ in nnx.to_flat_state(nnx.state(layer))]
            layer.set_policies({name: self.decisions[f"{path}.{name}"].policy for name in map(str, names)})
        return nnx.split(abstract)

    @cached_property
    def _activation_type(self) -> DType:
        probe = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(lambda params, tokens: self._first_key(params, tokens), self.abstract_params, probe).dtype

    def _first_key(self, params: Params, tokens: jax.Array) -> jax.Array:
        module: Any = self.module(params)
        block = module.decoder.blocks[0]
        return block.self_attention.key(block.self_attention_norm(module.embedder.token_embedding(tokens)))

    def _init(self, key: jax.Array) -> Params:
        module = self.architecture.build(self.spec, nnx.Rngs(key))
        values = {_path(key): variable.get_value() for key, variable in nnx.to_flat_state(nnx.state(module))}
        for path, value in list(values.items()):
            if is_low_precision(self.stored[path]):
                layer = path.rpartition(".")[0]
                codes, scale = quantize(value, self.tiles[layer])
                values |= {path: codes, f"{layer}.scale_inv": scale.astype(self.stored[f"{layer}.scale_inv"])}
            else:
                values[path] = value.astype(self.stored[path])
        return nested(values)


def build_model(spec: DecoderSpec, policy: PolicyLike = None) -> Model:
    """A model without parameters: `model.init(key)` makes random ones, stored as `policy` says (default f32).

    Raises PolicyError for a rule that matches no parameter and for a type that a parameter cannot take.
    """
    mapping = architecture_of(spec).mapping
    paths = list(abstract_shapes(spec))
    low = FORMATS["f8_e4m3fn"]
    # The scales that a policy may turn out to ask for can be named by its rules too.
    kernels = [path for path in paths if path.endswith(".kernel")]
    scales = [path.removesuffix("kernel") + "scale_inv" for path in kernels]
    decisions = as_precision(policy).resolve({path: mapping.tensor(path) for path in [*paths, *scales]})
    stored: dict[str, DType] = {}
    tiles: dict[str, tuple[int, int]] = {}
    problems = []
    for path in paths:
        layer, _, name = path.rpartition(".")
        wanted = resolve_type(decisions[path].policy, "params", name) or _DEFAULT_TYPE
        stored[path] = wanted
        if is_low_precision(wanted):
            if name != "kernel":
                problems.append(unstorable(path, wanted, decisions[path]))
                continue
            assert low.tile is not None
            tiles[layer] = low.tile
            stored[f"{layer}.scale_inv"] = scale_type(decisions[f"{layer}.scale_inv"], _DEFAULT_TYPE)
    if problems:
        raise PolicyError(problems, where="policy")
    return Model(spec=spec, decisions={path: decisions[path] for path in stored}, stored=stored, tiles=tiles)


def scale_type(decision: Decision, found: DType) -> DType:
    """What a scale is stored as: the type it has, unless a rule or a map names the scale itself."""
    wanted = resolve_type(decision.policy, "params", "scale_inv")
    named = decision.policy is not None and decision.policy.names("params", "scale_inv")
    exact = decision.rule is not None and decision.rule.endswith("scale_inv")
    return wanted if wanted is not None and (named or exact) else found


def unstorable(path: str, wanted: DType, decision: Decision) -> Problem:
    """The problem of a parameter that cannot be stored in tiles."""
    return Problem(
        subject=f"parameter {path}",
        message=f"cannot be stored as {type_name(wanted)}, which rule {decision.rule!r} asks for: only kernels of "
        "dense layers have tiles with scales",
        remedy='give it another type, for example params={"kernel": "f8_e4m3fn", "default": "bf16"}',
    )


def abstract_module(spec: DecoderSpec, tiles: Mapping[str, tuple[int, int]]) -> nnx.Module:
    """The module tree with shapes in place of arrays, and scales where `tiles` names a layer."""

    def build() -> nnx.Module:
        module = architecture_of(spec).build(spec, nnx.Rngs(0))
        layers = named_layers(module)
        for path, block_shape in tiles.items():
            layer = layers[path]
            assert isinstance(layer, Dense)
            layer.store_in_tiles(block_shape)
        return module

    return nnx.eval_shape(build)


def abstract_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model of `spec`, by path; scales of quantized kernels not included."""
    state = nnx.state(abstract_module(spec, {}))
    return {_path(key): variable.get_value().shape for key, variable in nnx.to_flat_state(state)}


def named_layers(module: nnx.Module) -> dict[str, Layer]:
    """Every layer that owns parameters, by path."""
    return {_path(key): part for key, part in nnx.iter_modules(module) if isinstance(part, Layer)}


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of parameters as path -> leaf."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            result |= {f"{name}.{rest}": leaf for rest, leaf in flat(value).items()}
        else:
            result[name] = value
    return result


def nested(values: Mapping[str, Any]) -> Params:
    """path -> leaf as a nested dict; the inverse of `flat`."""
    result: Params = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return result


def _path(key: tuple[Any, ...]) -> str:
    return ".".join(map(str, key))
