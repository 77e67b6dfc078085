"""Files of `torch.save`, read without torch: both formats, every type, views, names. tests/parity has torch's own."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import Call, Name, Persistent, Raw, legacy_file, pickled, storage, view, zip_file

from bombus.loader.tensors import same_bytes
from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError

VALUES = np.arange(6, dtype=np.float32) + 0.5
FORMATS = ("stored", "deflated", "legacy")


def write(path: Path, value, storages, form="stored", **options) -> Path:
    """A checkpoint; in the older format, None stands behind every persistent id."""
    if form == "legacy":
        path.write_bytes(legacy_file(with_none(value), storages, **options))
    else:
        method = zipfile.ZIP_DEFLATED if form == "deflated" else zipfile.ZIP_STORED
        data = {key: values.tobytes() for key, values in storages.items()}
        path.write_bytes(zip_file(value, data, compression=method, **options))
    return path


def with_none(value):
    match value:
        case Persistent(identity):
            return Persistent((*identity, None))
        case Call(function, arguments):
            return Call(function, with_none(arguments))
        case tuple() | list():
            return type(value)(with_none(item) for item in value)
        case dict():
            return {key: with_none(item) for key, item in value.items()}
    return value


def read(path: Path) -> dict[str, np.ndarray]:
    return {name: info.read(name) for name, info in read_torch_header(path).items()}


def random_values(dtype, count=30, seed=0):
    """Every bit pattern that chance brings."""
    raw = np.random.default_rng(seed).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype)


def same(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


TYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
UNTYPED = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_type_of_storage_comes_back_bit_for_bit(tmp_path, form):
    values = {name: random_values(dtype, seed=seed) for seed, (name, dtype) in enumerate(TYPES.items())}
    state = {name: view(storage(name, f"torch.{name}Storage", 30), 0, (5, 6), (6, 1)) for name in TYPES}
    found = read(write(tmp_path / "w.bin", state, values, form))
    assert list(found) == list(TYPES)
    for name, expected in values.items():
        same(found[name], expected.reshape(5, 6))
        assert found[name].ctypes.data % 64 == 0


@pytest.mark.parametrize("form", FORMATS)
def test_newer_types_are_views_of_bytes(tmp_path, form):
    """torch 2.3 and later: offset, shape and strides count in values, the storage in bytes."""
    values = {name: random_values(dtype, seed=seed) for seed, (name, dtype) in enumerate(UNTYPED.items())}
    raw = {name: item.view(np.uint8) for name, item in values.items()}
    hooks = Call("collections.OrderedDict")
    state = {
        name: Call(
            "torch._utils._rebuild_tensor_v3",
            (
                storage(name, "torch.storage.UntypedStorage", raw[name].size),
                *(6, (4, 5), (1, 4), False, hooks, Name(f"torch.{name}")),
                *([{}] if name.startswith("uint") else []),
            ),
        )
        for name in UNTYPED
    }
    found = read(write(tmp_path / "w.bin", state, raw, form))
    for name, expected in values.items():
        same(found[name], np.ascontiguousarray(expected[6:26].reshape(5, 4).T))


# Offset, shape and strides of views of 60 values.
VIEWS = {
    "whole": (0, (60,), (1,)),
    "rows of a matrix": (12, (3, 6), (6, 1)),
    "transposed": (0, (6, 10), (1, 6)),
    "columns": (2, (10, 2), (6, 1)),
    "every second row": (0, (5, 6), (12, 1)),
    "permuted": (0, (4, 3, 5), (1, 20, 4)),
    "windows that overlap": (0, (5, 8), (4, 1)),
    "repeated": (3, (4, 5), (0, 1)),
    "scalar": (59, (), ()),
    "one value with odd strides": (59, (1, 1), (2**62, 7)),
    "one plane of columns": (2, (1, 10, 2), (2**62, 6, 1)),
    "one row with an odd stride": (0, (1, 60), (2**62, 1)),
    "empty": (60, (0,), (1,)),
    "empty outside": (1000, (3, 0, 2**40), (0, 5, 2**40)),
}


@pytest.mark.parametrize("form", FORMATS)
def test_views_of_one_storage(tmp_path, form):
    """Against NumPy's view of the whole storage by the same numbers."""
    values = random_values(np.int16, 60)
    shared = storage("0", "torch.ShortStorage", 60)
    state = {name: view(shared, *numbers) for name, numbers in VIEWS.items()}
    path = write(tmp_path / "w.bin", state, {"0": values}, form)
    found = read(path)
    for name, (offset, shape, stride) in VIEWS.items():
        steps = [2 * step if size > 1 else 0 for size, step in zip(shape, stride, strict=True)]
        if 0 in shape:
            same(found[name], np.empty(shape, np.int16))
        else:
            same(found[name], np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy())
    header = read_torch_header(path)
    in_order = [name for name, info in header.items() if info.stride is None]
    assert in_order == [
        *("whole", "rows of a matrix", "scalar", "one value with odd strides", "one row with an odd stride"),
        *("empty", "empty outside"),
    ]
    # What is read of the storage is what the view reaches, and no more.
    assert header["columns"].stop - header["columns"].start == 2 * (9 * 6 + 2)


def test_tied_weights_are_the_same_bytes(tmp_path):
    shared = storage("0", numel=6)
    other = storage("1", numel=6)
    state = {"embedding": view(shared), "head": view(shared), "other": view(other)}
    header = read_torch_header(write(tmp_path / "w.bin", state, {"0": VALUES, "1": VALUES + 1}))
    assert header["embedding"] == header["head"]
    assert same_bytes(header["embedding"], header["head"], "head")
    assert not same_bytes(header["embedding"], header["other"], "other")


@pytest.mark.parametrize("form", FORMATS)
def test_parameters_and_the_oldest_tensors(tmp_path, form):
    hooks = Call("collections.OrderedDict")
    tensor = view(storage())
    state = {
        "parameter": Call("torch._utils._rebuild_parameter", (tensor, True, hooks)),
        "with attributes": Call("torch._utils._rebuild_parameter_with_state", (tensor, True, hooks, {"tied": True})),
        "first version": Call("torch._utils._rebuild_tensor", (storage(), 0, (2, 3), (3, 1))),
        "torch.Size": view(storage(), 0, Call("torch.Size", ((2, 3),))),
    }
    found = read(write(tmp_path / "w.bin", state, {"0": VALUES}, form))
    assert set(found) == set(state)
    for values in found.values():
        same(values, VALUES.reshape(2, 3))


METADATA = Raw(b"}X\x09\0\0\0_metadata}s")
# What torch.save has made of a state dict: an OrderedDict, filled behind it or (Python 2) given pairs.
DICTS = {
    "dict": lambda state: state,
    "OrderedDict": lambda state: Raw(
        b"ccollections\nOrderedDict\n)R" + pickled(state)[3:-1] + pickled(METADATA)[2:-1] + b"b"
    ),
    "OrderedDict of Python 2": lambda state: Call("collections.OrderedDict", ([list(item) for item in state.items()],)),
}


@pytest.mark.parametrize("form", ["stored", "legacy"])
@pytest.mark.parametrize("kind", DICTS)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_the_dict_of_tensors_and_where_it_is(tmp_path, form, kind, wrapper):
    of = storage("0", "torch.FloatStorage", 6, *([None] if form == "legacy" else []))
    state = DICTS[kind]({"a": view(of), "step": 3, "b": view(of, 1, (5,), (1,)), "note": "text", "none": None})
    value = state if wrapper is None else {"epoch": 3, wrapper: state, "loss": 0.5, "best": True, "none": None, "": ""}
    path = tmp_path / "w.bin"
    path.write_bytes(
        legacy_file(value, {"0": VALUES}) if form == "legacy" else zip_file(value, {"0": VALUES.tobytes()})
    )
    found = read(path)
    assert list(found) == ["a", "b"]
    same(found["a"], VALUES.reshape(2, 3))
    same(found["b"], VALUES[1:])


def test_a_tensor_may_have_the_name_of_a_wrapper(tmp_path):
    state = {"model": view(storage()), "state_dict": view(storage(), 0, (6,), (1,))}
    assert list(read_torch_header(write(tmp_path / "w.bin", state, {"0": VALUES}))) == ["model", "state_dict"]


def test_no_tensors_at_all(tmp_path):
    for form in FORMATS:
        assert read_torch_header(write(tmp_path / "w.bin", {}, {}, form)) == {}


class Pipe(io.RawIOBase):
    """Nothing in it can be written twice, so zipfile puts sizes behind the data, as torch does."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


TIME = b"UT\5\0\1abcd"  # an extra field: when the file was changed


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_other_writers(tmp_path, monkeypatch, method):
    """Directories, comments, sizes behind the data, another root, another file like the pickle, numbers of 64 bits."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        archive.comment = b"a comment"
        archive.writestr("my model/", b"")
        archive.writestr("my model/data/", b"")
        archive.writestr("my model/more/data.pkl", pickled(3))
        storage_record = zipfile.ZipInfo("my model/data/0")
        storage_record.compress_type, storage_record.comment, storage_record.extra = method, b"a comment", TIME
        with archive.open(storage_record, "w", force_zip64=True) as record:
            record.write(VALUES.tobytes())
        with archive.open("my model/data.pkl", "w", force_zip64=True) as record:
            record.write(pickled({"w": view(storage())}))
    assert b"PK\6\6" in pipe.data
    # zipfile writes the 64-bit numbers before all other extra fields; others may not.
    content, at = pipe.data, pipe.data.rindex(TIME)
    wide = content[at - 28 : at]
    assert wide.startswith(b"\1\0\x18\0")
    path = tmp_path / "w.pt"
    path.write_bytes(content[: at - 28] + TIME + wide + content[at + len(TIME) :])
    same(read(path)["w"], VALUES.reshape(2, 3))


def test_twenty_thousand_tensors(tmp_path):
    """With places in the memo that need four bytes."""
    numbers = np.arange(20_000, dtype=np.int32)
    places = (b"r" + struct.pack("<I", 10 + place) for place in range(len(numbers)))
    shared = pickled(storage("0", "torch.IntStorage", len(numbers)))[2:-1] + b"q\0"
    entries = (
        pickled(f"layers.{number}.weight")[2:-1]
        + next(places)
        + pickled(view(Raw(b"h\0"), int(number), (1,), (1,)))[2:-1]
        for number in numbers
    )
    value = Raw(b"}(X\5\0\0\0first" + pickled(view(Raw(shared), 0, (), ()))[2:-1] + b"".join(entries) + b"u")
    header = read_torch_header(write(tmp_path / "w.bin", value, {"0": numbers}))
    assert len(header) == 20_001
    assert header["layers.19876.weight"].read("w").tolist() == [19876]


@pytest.mark.parametrize("form", ["stored", "legacy"])
def test_a_file_that_is_cut_after_its_header_was_read_is_an_error(tmp_path, form):
    path = write(tmp_path / "w.bin", {"w": view(storage())}, {"0": VALUES}, form)
    info = read_torch_header(path)["w"]
    os.truncate(path, info.start + 5)
    with pytest.raises(CheckpointError, match=r"tensor w: ends early.*\(expected 24 bytes, found 5\)"):
        info.read("w")


def test_a_real_checkpoint(data):
    """Facts from torch.load of the same file."""
    header = read_torch_header(data / "tiny-llama-bin" / "pytorch_model.bin")
    layer = {
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (32, 32),
        "self_attn.v_proj.weight": (32, 32),
        "self_attn.o_proj.weight": (32, 32),
        "self_attn.rotary_emb.inv_freq": (8,),
        "mlp.gate_proj.weight": (64, 32),
        "mlp.down_proj.weight": (32, 64),
        "mlp.up_proj.weight": (64, 32),
        "input_layernorm.weight": (32,),
        "post_attention_layernorm.weight": (32,),
    }
    layers = {f"layers.{number}.{name}": shape for number in range(2) for name, shape in layer.items()}
    expected = {"embed_tokens.weight": (32000, 32), **layers, "norm.weight": (32,)}
    assert {name: info.shape for name, info in header.items()} == expected
    assert {info.dtype for info in header.values()} == {np.dtype(np.float32)}
    down = header["layers.1.mlp.down_proj.weight"].read("w")
    first = [-0.00926115084439516, 0.01004842296242714, -0.006415873765945435]
    assert [*down[0, :3].tolist(), down[-1, -1].item()] == [*first, 0.0004534187901299447]
    embedding = header["embed_tokens.weight"].read("w")
    assert (embedding[0].any(), embedding[-1, -1].item()) == (False, 0.021344030275940895)
    assert header["layers.0.self_attn.rotary_emb.inv_freq"].read("w")[-1].item() == 0.0003162277862429619
