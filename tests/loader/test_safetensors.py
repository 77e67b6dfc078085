"""The safetensors reader: a corpus of damaged files, each refused by name, and bytes that come back as they are.

Rows are those of the project's list of malformed inputs (empty file, truncated, overlapping, ...).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors_files import entry, file_of

from bombus.loader.safetensors import read_header
from bombus.policies.errors import CheckpointError

AGAIN = "Download the file again, for example with `hf download`"
HEADER_REMEDY = ". Download the file again"


def one(dtype="F32", shape=(2,), offsets=(0, 8), data=bytes(8)):
    """A file with the one tensor `w`."""
    return file_of({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}, data)


class Payload:
    """Unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def zipped_pickle():
    """What torch.save writes: a zip archive with a pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": [0.0] * 64}, protocol=2))
    return buffer.getvalue()


LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
HTML = b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>"
PICKLED = "file: is a PyTorch pickle under the name of a safetensors file; it was not opened. Convert it with the "
NOT_VALID = "header: is not valid: "
# Rows 1 to 23 and 25: (name, the file's bytes, what the message says after the file's path).
REFUSED = [
    ("1 empty", b"", f"file: is empty (expected a header of at most 0 bytes, found 0 bytes in all). {AGAIN}"),
    (
        "2 shorter than a length",
        b"\x10\x00\x00\x00\x00",
        f"file: is not a safetensors file (expected a header of at most 0 bytes, found 5 bytes in all). {AGAIN}",
    ),
    (
        "3 header longer than the file",
        (1000).to_bytes(8, "little") + b"{}" * 10,
        f"file: is not a safetensors file (expected a header of at most 20 bytes, found 1000 bytes). {AGAIN}",
    ),
    (
        "4 header length 2^63",
        (2**63).to_bytes(8, "little") + b"{}",
        "file: is not a safetensors file (expected a header of at most 2 bytes, found 9223372036854775808 bytes)",
    ),
    (
        "4 header length 2^64 - 1",
        b"\xff" * 8 + b"{}",
        "file: is not a safetensors file (expected a header of at most 2 bytes, found 18446744073709551615 bytes)",
    ),
    ("5 not UTF-8", file_of(b'{"\xff\xfe": 1}'), NOT_VALID + "'utf-8' codec can't decode byte 0xff in position 2"),
    ("6 not JSON", file_of(b"{'w': 1}"), NOT_VALID + "Expecting property name"),
    ("6 no header", file_of(b""), NOT_VALID + "Expecting value"),
    ("6 text after the object", file_of(b"{} {}"), NOT_VALID + "Extra data"),
    ("6 not an object", file_of(b"[]"), NOT_VALID + "not an object" + HEADER_REMEDY),
    # The format: "the header data MUST begin with a { character".
    ("6 a space before the object", file_of(b" {}"), NOT_VALID),
    ("7 objects nested 100,000 deep", file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), NOT_VALID),
    ("7 lists nested 100,000 deep", file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), NOT_VALID),
    (
        "8 Git LFS pointer",
        LFS,
        "file: is a Git LFS pointer, not the weights. Run `git lfs pull` in the folder, or download the file again, "
        "for example with `hf download`",
    ),
    ("9 HTML", HTML, f"file: is an HTML page, not the weights. {AGAIN}"),
    ("9 HTML after white space", b"\n\n  <html>" + HTML, f"file: is an HTML page, not the weights. {AGAIN}"),
    ("10 pickle in a zip archive", zipped_pickle(), PICKLED),
    *(
        (f"10 pickle of protocol {protocol}", pickle.dumps({"w": [0.0] * 64}, protocol=protocol), PICKLED)
        for protocol in (2, 3, 4, 5)
    ),
    (
        "11 truncated",
        one(data=bytes(5)),
        "file: is cut short: 3 bytes are missing (expected 77 bytes, found 74). Download it again",
    ),
    (
        "12 trailing bytes",
        one(data=bytes(11)),
        "file: has 3 spare bytes at its end (expected 77 bytes, found 80). Download it again",
    ),
    (
        "13 hole between tensors",
        file_of({"a": entry(0, 4), "b": entry(6, 8)}, bytes(8)),
        "tensor b: leaves a hole before it (expected offset 4, found 6)",
    ),
    (
        "13 hole before the first tensor",
        file_of({"a": entry(4, 8)}, bytes(8)),
        "tensor a: leaves a hole before it (expected offset 0, found 4)",
    ),
    (
        "14 overlapping",
        file_of({"a": entry(0, 6), "b": entry(4, 8)}, bytes(8)),
        "tensor b: overlaps the tensor before it (expected offset 6, found 4)",
    ),
    (
        "14 the same bytes twice",
        file_of({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "overlaps the tensor before it (expected offset 8, found 0)",
    ),
    (
        "15 reversed offsets",
        one(offsets=(8, 0)),
        "tensor w: has no valid data_offsets (expected [start, end] with start <= end, found [8, 0])",
    ),
    (
        "15 negative offset",
        one(offsets=(-8, 0)),
        "tensor w: has no valid data_offsets (expected [start, end] with start <= end, found [-8, 0])",
    ),
    ("15 fractional offset", one(offsets=(0, 8.0)), "tensor w: has no valid data_offsets"),
    ("15 three offsets", one(offsets=(0, 4, 8)), "tensor w: has no valid data_offsets"),
    (
        "16 duplicate tensor name",
        file_of('{"w": %s, "w": %s}' % ((json.dumps(entry(0, 8)),) * 2), bytes(8)),
        NOT_VALID + "'w' stands twice" + HEADER_REMEDY,
    ),
    (
        "17 duplicate key in an entry",
        file_of('{"w": {"dtype": "U8", "shape": [8], "shape": [8], "data_offsets": [0, 8]}}', bytes(8)),
        NOT_VALID + "'shape' stands twice" + HEADER_REMEDY,
    ),
    (
        "18 unknown dtype",
        one(dtype="F31"),
        "tensor w: has type 'F31', which is not known. The closest are 'F32'",
    ),
    ("18 dtype that is no text", one(dtype=["F32"]), "tensor w: has type ['F32'], which is not known"),
    (
        "19 size that does not fit",
        one(shape=(3,)),
        "tensor w: has a size that does not fit F32 of shape [3] (expected 12 bytes, found 8)",
    ),
    ("20 half a byte of FP4", one(dtype="F4", shape=(3,), offsets=(0, 1), data=b"0"), "tensor w: has type 'F4'"),
    (
        "21 shape product of 2^80",
        one(shape=(2**40, 2**40)),
        f"tensor w: has a size that does not fit F32 of shape [1099511627776, 1099511627776] (expected {2**82} bytes",
    ),
    # 2^32 times 2^32 elements are 0 in 64-bit arithmetic.
    ("21 shape product of 2^64", one(dtype="U8", shape=(2**32, 2**32), offsets=(0, 0), data=b""), f"{2**64} bytes"),
    ("21 size of 2^64", one(shape=(2**64,)), "tensor w: has no valid shape (expected up to 64 sizes, found [1844674"),
    (
        "22 negative size",
        one(shape=(-2,)),
        "tensor w: has no valid shape (expected up to 64 sizes, found [-2])",
    ),
    ("22 two negative sizes", one(shape=(-1, -2)), "tensor w: has no valid shape"),
    ("22 fractional size", one(shape=(2.0,)), "tensor w: has no valid shape (expected up to 64 sizes, found [2.0])"),
    ("22 true as a size", one(shape=(True, 2)), "tensor w: has no valid shape"),
    ("22 NaN as a size", one(shape=(float("nan"),)), "tensor w: has no valid shape"),
    ("23 65 dimensions", one(shape=(2, *[1] * 64)), "tensor w: has no valid shape (expected up to 64 sizes"),
    ("23 shape that is no list", file_of({"w": entry(0, 8, shape=8)}, bytes(8)), "tensor w: has no valid shape"),
    (
        "25 metadata with a number",
        file_of({"__metadata__": {"format": 1}}),
        NOT_VALID + "__metadata__ must map strings to strings" + HEADER_REMEDY,
    ),
    ("25 metadata that is a list", file_of({"__metadata__": ["pt"]}), NOT_VALID + "__metadata__ must map strings"),
    ("an entry that is no object", file_of({"w": 3}), "tensor w: must have dtype, shape and data_offsets (found 3)"),
    (
        "an entry without a shape",
        file_of({"w": {"dtype": "U8", "data_offsets": [0, 0]}}),
        "tensor w: must have dtype, shape and data_offsets",
    ),
    (
        "an entry with a key of its own",
        file_of({"w": entry(0, 0) | {"stride": [1]}}),
        "tensor w: must have dtype, shape and data_offsets",
    ),
]


@pytest.mark.parametrize(("content", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_damaged_file_is_refused_by_name(tmp_path, content, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)
    # What is held is in proportion to the file, whatever it claims to be.
    assert peak < 2_000_000 + 50 * len(content)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 100_000_500)  # sparse: the header would be there
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "expected a header of at most 100000000 bytes, found 100000001 bytes" in str(caught.value)
    assert peak < 1_000_000


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_unpickled(tmp_path, protocol):
    path, made = tmp_path / "model.safetensors", tmp_path / "made by the pickle"
    path.write_bytes(pickle.dumps(Payload(str(made)), protocol=protocol))
    with pytest.raises(CheckpointError):
        read_header(path)
    assert not made.exists()


def test_all_damaged_tensors_are_listed_at_once(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"a": entry(0, 4, dtype="F31"), "b": entry(4, 8, shape=[5]), "c": entry(8, 12), "d": 0}
    path.write_bytes(file_of(header, bytes(12)))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert [problem.subject for problem in caught.value.problems] == ["tensor a", "tensor b", "tensor d"]
    assert str(caught.value).startswith(f"{path}: 3 problems\n  - tensor a: has type 'F31'")


def test_hole_overlap_and_spare_bytes_are_listed_at_once(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"a": entry(0, 4), "b": entry(2, 6), "c": entry(8, 12)}
    path.write_bytes(file_of(header, bytes(15)))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    messages = [f"{problem.subject}: {problem.message}" for problem in caught.value.problems]
    assert messages == [
        "tensor b: overlaps the tensor before it",
        "tensor c: leaves a hole before it",
        "file: has 3 spare bytes at its end",
    ]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2**40)])
def test_a_tensor_without_elements_is_accepted(tmp_path, shape):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": entry(0, 4), "empty": entry(4, 4, shape=list(shape), dtype="F32")}, b"abcd"))
    tensors = read_header(path)
    empty = tensors["empty"].read("empty")
    assert (empty.shape, empty.dtype) == (shape, np.float32)
    assert tensors["a"].read("a").tobytes() == b"abcd"


def test_a_scalar_64_dimensions_and_no_tensors_are_accepted(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"s": entry(0, 2, shape=[], dtype="I16"), "deep": entry(2, 4, [2] + [1] * 63)}, b"\1\0ab"))
    tensors = read_header(path)
    assert tensors["s"].read("s").item() == 1
    assert tensors["deep"].read("deep").shape == (2, *[1] * 63)
    path.write_bytes(file_of({}))
    assert read_header(path) == {}


@pytest.mark.parametrize("padding", range(1, 9))
def test_data_that_is_not_aligned_is_read(tmp_path, padding):
    """Row 26: neither the file's data section nor a tensor in it has to start at a multiple of anything."""
    path = tmp_path / "model.safetensors"
    values = np.asarray([1.5, -2.25, 3e38], np.float32)
    header = json.dumps({"byte": entry(0, 1), "w": entry(1, 13, shape=[3], dtype="F32")}) + " " * padding
    path.write_bytes(file_of(header, b"\x07" + values.tobytes()))
    tensors = read_header(path)
    found = tensors["w"].read("w")
    np.testing.assert_array_equal(found, values, strict=True)
    assert found.ctypes.data % 64 == 0


def test_metadata_is_accepted_and_is_no_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"__metadata__": {"format": "pt"}, "w": entry(0, 2)}, b"ab"))
    assert list(read_header(path)) == ["w"]


TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "BOOL": np.bool_,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
}


def random_values(dtype, shape, seed=0):
    """Every bit pattern that chance brings, NaN and subnormal numbers included."""
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_comes_back_bit_for_bit(tmp_path, name):
    """Files of the reference library; the three tensors lie at offsets of their own."""
    path = tmp_path / "model.safetensors"
    written = {f"t{seed}": random_values(TYPES[name], shape, seed) for seed, shape in enumerate([(7, 33), (64,), ()])}
    safetensors.numpy.save_file(written, path, {"format": "pt"})
    tensors = read_header(path)
    assert set(tensors) == set(written)
    for tensor, values in written.items():
        found = tensors[tensor].read(tensor)
        assert (found.dtype, found.shape) == (np.dtype(TYPES[name]), values.shape)
        assert found.tobytes() == values.tobytes()
        assert tensors[tensor].nbytes == values.nbytes


@pytest.mark.parametrize("name", TYPES)
def test_the_types_have_the_names_of_the_format(tmp_path, name):
    """Without the reference library, whose older versions do not know all of them."""
    path = tmp_path / "model.safetensors"
    values = random_values(TYPES[name], (5, 3))
    header = {"w": {"dtype": name, "shape": [5, 3], "data_offsets": [0, values.nbytes]}}
    path.write_bytes(file_of(header, values.tobytes()))
    found = read_header(path)["w"].read("w")
    assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())


def test_known_codes_have_known_values(tmp_path):
    path = tmp_path / "model.safetensors"
    # 448 is e4m3fn's largest number, 2**-9 its smallest; e8m0 is a bare exponent, with 127 for 1.
    path.write_bytes(
        file_of({"a": entry(0, 3, dtype="F8_E4M3"), "b": entry(3, 6, dtype="F8_E8M0")}, b"\x7e\x01\xb8\x7f\x80\x7e")
    )
    tensors = read_header(path)
    assert tensors["a"].read("a").astype(np.float32).tolist() == [448.0, 2.0**-9, -1.0]
    assert tensors["b"].read("b").astype(np.float32).tolist() == [1.0, 2.0, 0.5]
