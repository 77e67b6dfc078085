"""Files that torch writes read here with the values that torch has, in both formats and every protocol."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bombus.loader.pickles import interpret
from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

# torch's types, in the type of the same size that NumPy gets from it, and the type that is expected here.
TYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
WRITERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    **{f"zip, protocol {protocol}": {"pickle_protocol": protocol} for protocol in (3, 4, 5)},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
each_writer = pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS.keys())


def as_numpy(tensor: Any) -> np.ndarray:
    """The same bits, in the type that is expected of the reader."""
    expected = np.dtype(TYPES[str(tensor.dtype).removeprefix("torch.")])
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(expected).reshape(tensor.shape)


def check(path: Path, tensors: dict[str, Any]) -> None:
    header = read_torch_header(path)
    assert list(header) == list(tensors)
    for name, tensor in tensors.items():
        found, expected = header[name].read(name), as_numpy(tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert found.tobytes() == expected.tobytes(), name


def random_tensor(dtype: str, *shape: int) -> Any:
    """Every bit pattern that chance brings."""
    kind = getattr(torch, dtype)
    size = torch.empty(0, dtype=kind).element_size()
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return raw.view(kind)


@each_writer
def test_every_type(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    state = {name: random_tensor(name, 5, 7) for name in TYPES}
    state |= {f"{name} transposed": random_tensor(name, 5, 7).T for name in TYPES}
    torch.save(state, tmp_path / "w.bin", **options)
    check(tmp_path / "w.bin", state)


@each_writer
def test_views(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    whole = torch.randn(6, 8, 10)
    state = {
        "whole": whole,
        "tied": whole,
        "row": whole[3],
        "last value": whole[-1, -1, -1],
        "columns": whole[:, 2:5, ::3],
        "permuted": whole.permute(2, 0, 1),
        "flat": whole.reshape(-1)[17:],
        "diagonal": whole[0].diagonal(),
        "expanded inside": whole[0, :1].expand(8, 10),
        "windows": whole.reshape(-1).unfold(0, 20, 4)[:20],
        "empty": whole[:0],
        "empty in between": torch.empty(3, 0, 5),
        "scalar": torch.tensor(3),
        "one row": whole[:1, :1],
        "parameter": torch.nn.Parameter(whole[1].T),
        "integer parameter": torch.nn.Parameter(torch.arange(5), requires_grad=False),
    }
    state["parameter with attributes"] = torch.nn.Parameter(torch.ones(3))
    state["parameter with attributes"].tied = True
    torch.save(state, tmp_path / "w.bin", **options)
    check(tmp_path / "w.bin", state)


@each_writer
def test_state_dicts_of_modules_and_what_training_keeps_beside_them(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    module.append(torch.nn.Linear(4, 7, bias=False))
    module[3].weight = module[0].weight
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    for value in (state, {"state_dict": state, "epoch": 3, "note": "a", "loss": 0.5, "none": None, "done": True}):
        torch.save(value, tmp_path / "w.bin", **options)
        check(tmp_path / "w.bin", dict(state))


def test_a_real_checkpoint(data: Path) -> None:
    path = data / "tiny-llama-bin" / "pytorch_model.bin"
    check(path, torch.load(path, weights_only=True))


def test_many_tensors(tmp_path: Path) -> None:
    state = {f"layers.{number}.weight": torch.nn.Parameter(torch.full((2,), float(number))) for number in range(10_000)}
    torch.save(state, tmp_path / "w.bin")
    check(tmp_path / "w.bin", state)


def test_what_torch_saves_and_is_not_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    values = {
        "torch.nn.modules.linear.Linear": module,
        "torch._utils._rebuild_qtensor": {"w": quantized},
        "torch._utils._rebuild_sparse_tensor": {"w": torch.eye(3).to_sparse()},
        "torch._utils._rebuild_nested_tensor": {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
        "torch._utils._rebuild_meta_tensor_no_storage": {"w": torch.ones(3, device="meta")},
        "torch.ComplexFloatStorage": {"w": torch.ones(3, dtype=torch.complex64)},
        "the negative": {"w": torch.ones(3, dtype=torch.complex64).conj().imag},
        "entry 'optimizer'": {"model": module.state_dict(), "optimizer": optimizer.state_dict()},
        "repeats the values": {"w": torch.ones(1).expand(5)},
        "pathlib.PosixPath": {"w": torch.ones(1), "args": tmp_path},
        "numpy.dtype": {"w": torch.ones(1), "step": np.float64(3)},
        "TorchScript": None,
    }
    for text, value in values.items():
        path = tmp_path / "w.bin"
        if value is None:
            torch.jit.save(torch.jit.script(module), path)
        else:
            torch.save(value, path)
        with pytest.raises(CheckpointError) as caught:
            read_torch_header(path)
        assert text in str(caught.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(2**32) + 1, 2**32 - 1), inner)
    ),
    max_leaves=40,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(value=plain, protocol=st.integers(2, 5), shared=st.booleans())
def test_plain_values_are_those_that_python_pickled(value: Any, protocol: int, shared: bool) -> None:
    value = [value, value] if shared else value
    data = pickle.dumps(value, protocol)
    found, length = interpret(io.BytesIO(data + b"spare"), where="w.bin")
    assert (found, length) == (value, len(data))
    assert repr(found) == repr(value)  # also -0.0 and True, which equal 0 and 1
