"""What `torch.save` writes of tensors: names of functions and types, storages, and views of these.

Several tensors may be views of one storage (tied weights, slices of a fused one): each is a range of its bytes.
A tensor that has more values than its storage is refused, so that no more is read than the file holds.

Source: torch 2.13's torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bombus.loader.pickle_machine import CONVERT, Global, Invalid, Names, fill, shown
from bombus.loader.tensors import TensorInfo
from bombus.loader.zip_records import DeflatedTensor, Record
from bombus.policies.errors import Problem

_MAX_DIMENSIONS = 64
_STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),  # the type is the tensor's
}
_DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
}
_UNSUPPORTED = {
    "torch._utils._rebuild_qtensor": "a quantized tensor of PyTorch's own",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_wrapper_subclass": "a subclass of tensors",
    "torch._tensor._rebuild_from_type_v2": "a subclass of tensors",
    "torch.ComplexFloatStorage": "complex numbers",
    "torch.ComplexDoubleStorage": "complex numbers",
    "torch.float8_e4m3fnuz": "numbers of a type that is not known",
    "torch.float8_e5m2fnuz": "numbers of a type that is not known",
}
_NO_VIEW = "a tensor is not a view of a storage, by offset, shape, strides and type"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Storage:
    """A run of values that is written once, under a key."""

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """The size of the values."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTensor:
    """A view of a storage as a pickle has it, counted in values of `dtype`; its numbers are not checked yet."""

    storage: Storage
    dtype: np.dtype
    offset: Any
    shape: Any
    stride: Any


def declare(storages: dict[str, Storage], identity: tuple[Any, ...]) -> Storage:
    """The storage of a persistent id; it is added to `storages`. Raises Invalid for other ids."""
    match identity:
        case ("storage", Global(name=kind), str(key), str(), int(numel), *view) if kind in _STORAGES and len(view) < 2:
            if any(view):
                raise Invalid("a storage is a part of another one", "load it with torch and save it again")
        case ("module", *_):
            raise Invalid("it holds a module, and not only its parameters", "save the module's `state_dict()` instead")
        case _:
            raise Invalid("a persistent id is not that of a storage of a known type")
    if not _are_sizes((numel,)):
        raise Invalid(f"storage {shown(key)} has {shown(numel)} values")
    storage = storages.setdefault(key, Storage(key=key, dtype=_STORAGES[kind], numel=numel))
    if (storage.dtype, storage.numel) != (_STORAGES[kind], numel):
        raise Invalid(f"storage {shown(key)} is described twice, and differently")
    return storage


def locate(name: str, tensor: StoredTensor, record: Record, path: Path) -> TensorInfo | Problem:
    """Where the values of a tensor are in the file, whose `record` is the tensor's storage."""

    def refused(message: str, expected: str, found: str, remedy: str | None = None) -> Problem:
        return Problem(subject=f"tensor {name}", message=message, expected=expected, found=found, remedy=remedy)

    shape, offset, width = tensor.shape, tensor.offset, tensor.dtype.itemsize
    # NumPy counts the bytes of an array without values as if no size were 0.
    if not _are_sizes(shape) or math.prod(max(size, 1) for size in shape) * width >= 2**63:
        return refused("has no valid shape", f"up to {_MAX_DIMENSIONS} sizes", _listed(shape))
    if not _are_sizes(tensor.stride) or len(tensor.stride) != len(shape):
        return refused("has no valid strides", f"{len(shape)} steps of 0 or more", _listed(tensor.stride))
    if not _are_sizes((offset,)):
        return refused("has no valid offset", "a number of 0 or more", _listed((offset,)))
    count, available = math.prod(shape), tensor.storage.nbytes // width
    # A step along a dimension of one value leads nowhere, and may be anything.
    stride = tuple(step if size > 1 else 0 for size, step in zip(shape, tensor.stride, strict=True))
    first = stop = 0
    if count:
        first = offset
        stop = first + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if stop > available:
        return refused("reaches outside its storage", f"at most {available} values", f"{stop}")
    if count > available:
        remedy = "save a contiguous copy of it"
        return refused("repeats the values of its storage", f"at most {available} values", f"{count}", remedy)
    base = 0 if record.deflated else record.start
    info = TensorInfo(
        dtype=tensor.dtype,
        shape=shape,
        file=path,
        start=base + first * width,
        stop=base + stop * width,
        stride=None if count == 0 or _is_contiguous(shape, stride) else stride,
    )
    return DeflatedTensor(**vars(info), record=record) if record.deflated else info


def _are_sizes(values: Any) -> bool:
    if type(values) is not tuple or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _listed(values: Any) -> str:
    """Values of a file for a message; a container is only named, as printing it may recurse without a limit."""
    if type(values) is not tuple:
        return f"a {type(values).__name__}"
    texts = [shown(value) if type(value) is int else f"a {type(value).__name__}" for value in values[:8]]
    return f"[{', '.join(texts)}{', ...' if len(values) > 8 else ''}]"


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and found != step:
            return False
        step *= size
    return True


def _rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (Storage() as storage, offset, shape, stride):
            return StoredTensor(storage=storage, dtype=storage.dtype, offset=offset, shape=shape, stride=stride)
    raise Invalid(_NO_VIEW)


def _rebuild_tensor_v2(arguments: tuple[Any, ...]) -> StoredTensor:
    """The view; whether it requires a gradient, and its hooks, are no part of its values."""
    if not 6 <= len(arguments) <= 7:
        raise Invalid(_NO_VIEW)
    if any(arguments[6:]):
        raise Invalid("a tensor is the conjugate or the negative of what is stored", CONVERT)
    return _rebuild_tensor(arguments[:4])


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> StoredTensor:
    tensor = _rebuild_tensor_v2((*arguments[:6], *arguments[7:]))
    match arguments[6:7]:
        case (Global(name=name),) if name in _DTYPES:
            return replace(tensor, dtype=_DTYPES[name])
    raise Invalid(_NO_VIEW)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """The tensor; a parameter's hooks and attributes are no part of its values."""
    match arguments:
        case (StoredTensor() as tensor, _, _) | (StoredTensor() as tensor, _, _, _):
            return tensor
    raise Invalid("a parameter is not made of a tensor")


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (tuple() as sizes,):
            return sizes
    raise Invalid("torch.Size is not made of sizes")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    match arguments:
        case ():
            return result
        case (list() as pairs,) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            fill(result, pairs)  # as Python 2 wrote them
            return result
    raise Invalid("collections.OrderedDict is not made of pairs")


NAMES = Names(
    functions={
        "collections.OrderedDict": _ordered_dict,
        "torch.Size": _size,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    },
    constants=_STORAGES.keys() | _DTYPES.keys(),
    unsupported=_UNSUPPORTED,
)
