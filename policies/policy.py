"""Policy: what one layer's parameters are stored as, what they are computed in, what the layer returns.

The triple is deepmind/jmp's and Axon's. Here `params` and `compute` may also be maps from a parameter's
name ("kernel", "scale_inv", "bias") to a type, with a "default"; `None` means "leave it".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import WEIGHTS, DType, Format, find_format, is_low_precision, type_name

Field: TypeAlias = Literal["params", "compute", "output"]
DEFAULT = "default"


class TypeMap(Mapping[str, Format | None]):
    """An immutable, hashable map from a parameter's name to a format or None."""

    def __init__(self, types: Mapping[str, Any]) -> None:
        self._types = {name: None if value is None else find_format(value) for name, value in types.items()}

    def __getitem__(self, name: str) -> Format | None:
        return self._types[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def __hash__(self) -> int:
        return hash(frozenset(self._types.items()))

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: {value}" for name, value in self._types.items()) + "}"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Stored as `params`, computed in `compute`, returned as `output`.

    Each of `params` and `compute` is a format, None, or a map from a parameter's name to a format or None, in
    which "default" stands for the names that are not listed. `output` is a type or None. Formats are spelled
    "bf16" or "int4(group=64)", or are NumPy/JAX types. A `compute` or `output` type must be one that arithmetic
    exists for.
    """

    params: Any = None
    compute: Any = None
    output: Any = None

    def __post_init__(self) -> None:
        for field in ("params", "compute"):
            object.__setattr__(self, field, _normalized(getattr(self, field), field))
        if isinstance(self.output, Mapping):
            raise PolicyError(
                Problem(
                    subject="Policy.output",
                    message="is what a whole layer returns and cannot be a map",
                    expected="a type or None",
                    found=repr(dict(self.output)),
                )
            )
        object.__setattr__(self, "output", _normalized(self.output, "output"))

    def names(self, field: Field, name: str) -> bool:
        """Whether the map of `field` lists this parameter itself, not through its "default"."""
        value = getattr(self, field)
        return isinstance(value, Mapping) and name in value

    def __repr__(self) -> str:
        return ", ".join(f"{field}={getattr(self, field)}" for field in ("params", "compute", "output")).join(
            ("Policy(", ")")
        )


def create_policy(*, params: Any = None, compute: Any = None, output: Any = None) -> Policy:
    """A Policy from type names, NumPy/JAX types, or maps of them. See Policy."""
    return Policy(params=params, compute=compute, output=output)


def resolve_format(policy: Policy | None, name: str | None = None) -> Format | None:
    """The format in which `policy` stores parameter `name`, or None for "leave it".

    A map gives `map[name]`, else `map["default"]`, else None; a plain format gives itself. A low-precision format
    is for weights: it leaves a parameter of another name alone.
    """
    found = _resolve(policy, "params", name)
    return None if found and found.is_low and name not in (None, *WEIGHTS) else found


def resolve_type(policy: Policy | None, field: Literal["compute", "output"], name: str | None = None) -> DType | None:
    """The type that `policy` gives to parameter `name` in `field`, or None for "leave it"."""
    found = _resolve(policy, field, name)
    return found.dtype if found else None


def _resolve(policy: Policy | None, field: Field, name: str | None) -> Format | None:
    value = None if policy is None else getattr(policy, field)
    if isinstance(value, TypeMap):
        return value[name] if name is not None and name in value else value.get(DEFAULT)
    return value


def cast(value: jax.Array, policy: Policy | None, field: Field, name: str | None = None) -> jax.Array:
    """`value` in the type that the policy gives it. Integers and booleans are never cast.

    Raises PolicyError for low-precision codes: without their scale a cast is corruption.
    """
    wanted = _resolve(policy, field, name)
    if wanted is None or value.dtype == wanted.dtype or not jax.numpy.issubdtype(value.dtype, np.floating):
        return value
    low = type_name(value.dtype) if is_low_precision(value.dtype) else str(wanted) if wanted.is_low else None
    if low is not None:
        raise PolicyError(
            Problem(
                subject=f"a cast from {type_name(value.dtype)} to {wanted}",
                message=f"would drop the scale that {low} codes need",
                remedy="quantize or dequantize with the scale instead",
            )
        )
    return value.astype(wanted.dtype)


def _normalized(value: Any, field: str) -> TypeMap | Format | None:
    if value is None:
        return None
    result = TypeMap(value) if isinstance(value, Mapping) else find_format(value)
    formats = result.values() if isinstance(result, TypeMap) else (result,)
    low = [found for found in formats if found is not None and found.is_low]
    if field != "params" and low:
        raise PolicyError(
            Problem(
                subject=f"Policy.{field}",
                message=f"cannot be {low[0]}: nothing is computed in a storage format",
                expected="f32, bf16 or f16",
                remedy=f"give {low[0]} as `params` and the type to dequantize to as `compute`",
            )
        )
    if isinstance(result, TypeMap):
        _check_weights(result)
    return result


def _check_weights(types: TypeMap) -> None:
    problems = [
        Problem(
            subject="Policy.params",
            message=f"cannot store {name!r} as {found}, which is for weights",
            expected=", ".join((*WEIGHTS, DEFAULT)),
            remedy=f"give {name!r} f32, bf16, f16 or None",
        )
        for name, found in types.items()
        if found is not None and found.is_low and name not in (*WEIGHTS, DEFAULT)
    ]
    if problems:
        raise PolicyError(problems)
