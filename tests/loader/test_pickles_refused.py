"""Files that are no checkpoints of torch, and pickles that are damaged or made to do harm: each is refused by name.

Numbers are rows of the project's list of malformed inputs.
"""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from torch_files import Call, Name, Persistent, Raw, legacy_file, pickled, storage, view, zip_file
from torch_refusals import cheap_refusal, refusal

AGAIN = "Download the file again, for example with `hf download`"
CONVERT = "Convert it with the safetensors library where you trust it"
RESAVE = "Load it with torch, and save only the parameters: `torch.save(model.state_dict(), path)`"
VALUES = np.arange(6, dtype=np.float32) + 0.5
DATA = {"0": VALUES.tobytes()}


def one(*numbers, of=None):
    """An archive with one tensor, of which offset, shape and strides are given."""
    return zip_file({"w": view(of or storage(), *numbers)}, DATA)


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    return file.getvalue()


NOT_VALID = "pickle: is not valid at byte "
NO_VIEW = "a tensor is not a view of a storage, by offset, shape, strides and type"
KIND = "torch.FloatStorage"
BYTES, UINT16 = storage("0", "torch.storage.UntypedStorage", 13), Name("torch.uint16")

REFUSED = [
    ("1 empty", b"", f"file: is empty. {AGAIN}"),
    ("2 three bytes", b"abc", f"file: is not a PyTorch checkpoint. {AGAIN}"),
    ("2 the start of a zip archive", b"PK\3\4", "zip archive: has no directory at its end: the file is cut short"),
    ("2 the start of a pickle", b"\x80\2", f"{NOT_VALID}2: it ends early. Download the file again"),
    ("a pickle of protocol 0", b"cos\nsystem\n(S'true'\ntR.", f"file: is not a PyTorch checkpoint. {AGAIN}"),
    (
        "8 Git LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "file: is a Git LFS pointer, not the weights. Run `git lfs pull` in the folder, or download the file again, "
        "for example with `hf download`",
    ),
    ("9 HTML", b"\n<!DOCTYPE html><title>404</title>", f"file: is an HTML page, not the weights. {AGAIN}"),
    (
        "safetensors",
        (2).to_bytes(8, "little") + b"{}",
        "file: is a safetensors file under another name. Rename it, to model.safetensors",
    ),
    (
        "tar",
        tar(),
        f"file: is in the tar format of the first versions of PyTorch, which is not read. {RESAVE}",
    ),
    (
        "53 os.system",
        zip_file({"w": Call("os.system", ("true",))}, {}),
        f"global os.system: is not a name that a checkpoint may use; it was not executed. {CONVERT}",
    ),
    ("53 os.system without torch", pickled(Call("os.system", ("true",))), "global os.system: is not a name that"),
    (
        "53 os.system for the magic number",
        legacy_file({}, {}, magic=Call("os.system", ("true",))),
        "global os.system: is",
    ),
    ("53 os.system for the keys", legacy_file({}, {}, keys=Call("os.system", ("true",))), "global os.system: is not"),
    ("54 an unlisted global", zip_file({"w": Name("numpy.dtype")}, {}), "global numpy.dtype: is not a name that"),
    (
        "54 a storage with no type",
        one(of=storage("0", "torch.storage.TypedStorage")),
        "global torch.storage.TypedStorage",
    ),
    (
        "a sparse tensor",
        zip_file({"w": Call("torch._utils._rebuild_sparse_tensor")}, {}),
        "global torch._utils._rebuild_sparse_tensor: stands for a sparse tensor, which is not read. Save a plain",
    ),
    (
        "a quantized tensor",
        zip_file(Call("torch._utils._rebuild_qtensor"), {}),
        "stands for a quantized tensor of PyTorch's",
    ),
    ("a nested tensor", zip_file(Call("torch._utils._rebuild_nested_tensor"), {}), "stands for a nested tensor"),
    (
        "a tensor without values",
        zip_file(Call("torch._utils._rebuild_meta_tensor_no_storage"), {}),
        "a tensor without values",
    ),
    ("complex numbers", one(of=storage("0", "torch.ComplexFloatStorage")), "stands for complex numbers"),
    # Row 55, in a pickle: what a tensor is made of.
    ("55 no storage", zip_file({"w": view(None)}, {}), NO_VIEW),
    ("55 a storage is called", zip_file({"w": Call(KIND)}, {}), f"{KIND} is called, which is no function"),
    ("55 three arguments", zip_file(Call("torch._utils._rebuild_tensor", (storage(), 0, ())), DATA), NO_VIEW),
    (
        "55 five arguments",
        zip_file(Call("torch._utils._rebuild_tensor_v2", (storage(), 0, (), (), False)), DATA),
        NO_VIEW,
    ),
    (
        "55 a type that is none",
        zip_file(Call("torch._utils._rebuild_tensor_v3", (storage(), 0, (), (), False, None, Name(KIND))), DATA),
        NO_VIEW,
    ),
    (
        "55 no type",
        zip_file(Call("torch._utils._rebuild_tensor_v3", (storage(), 0, (), (), False, None)), DATA),
        NO_VIEW,
    ),
    ("a negative view", one(0, (6,), (1,), {"neg": True}), f"the negative of what is stored. {CONVERT}"),
    (
        "a parameter of nothing",
        zip_file(Call("torch._utils._rebuild_parameter", (1, 2, 3)), {}),
        "a parameter is not made of",
    ),
    ("torch.Size of a number", one(0, Call("torch.Size", (6,))), "torch.Size is not made of sizes"),
    ("OrderedDict of numbers", zip_file(Call("collections.OrderedDict", ([1],)), {}), "is not made of pairs"),
    ("OrderedDict of threes", zip_file(Call("collections.OrderedDict", ([(1, 2, 3)],)), {}), "is not made of pairs"),
    (
        "OrderedDict with a name twice",
        zip_file(Call("collections.OrderedDict", ([("w", 1), ("w", 2)],)), {}),
        "a dict has the key 'w' twice",
    ),
    (
        "16 a name twice",
        zip_file(Raw(b"}(X\1\0\0\0wNX\1\0\0\0wNu"), {}),
        f"{NOT_VALID}19: a dict has the key 'w' twice",
    ),
    (
        "a persistent id of one number",
        zip_file(Persistent((1,)), {}),
        "a persistent id is not that of a storage of a known",
    ),
    (
        "a type that is no storage's",
        one(of=storage("0", "torch.uint16")),
        "a persistent id is not that of a storage of a",
    ),
    (
        "a key that is a number",
        one(of=Persistent(("storage", Name(KIND), 0, "cpu", 6))),
        "a persistent id is not that of a",
    ),
    (
        "an id of seven",
        one(of=storage("0", KIND, 6, None, None)),
        "a persistent id is not that of a storage of a known",
    ),
    ("-1 values", one(of=storage(numel=-1)), "storage '0' has -1 values"),
    ("2^63 values", one(of=storage(numel=2**63)), f"storage '0' has {2**63} values"),
    ("true values", one(of=storage(numel=True)), "storage '0' has True values"),
    (
        "a storage of two sizes",
        zip_file([view(storage()), view(storage(numel=5))], DATA),
        "storage '0' is described twice, and differently",
    ),
    (
        "a storage of two types",
        zip_file([storage(), storage("0", "torch.IntStorage")], DATA),
        "is described twice, and",
    ),
    (
        "a part of a storage",
        legacy_file({"w": view(storage("0", KIND, 6, ("1", 2, 3)))}, {"0": VALUES}),
        "a storage is a part of another one. Load it with torch and save it again",
    ),
    (
        "a whole module",
        legacy_file(Persistent(("module", 1, 2, 3)), {}),
        "it holds a module, and not only its parameters. Save the module's `state_dict()` instead",
    ),
    # Row 55, by name: where a tensor is in its storage.
    ("55 negative offset", one(-1), "tensor w: has no valid offset (expected a number of 0 or more, found [-1])"),
    (
        "55 offset that is a text",
        one("0"),
        "tensor w: has no valid offset (expected a number of 0 or more, found [a str])",
    ),
    ("55 offset outside", one(1), "tensor w: reaches outside its storage (expected at most 6 values, found 7)"),
    (
        "55 offset of 2^62",
        one(2**62),
        f"tensor w: reaches outside its storage (expected at most 6 values, found {2**62 + 6})",
    ),
    (
        "55 offset of 2^64",
        one(2**64),
        f"tensor w: has no valid offset (expected a number of 0 or more, found [{2**64}])",
    ),
    (
        "55 shape outside",
        one(0, (3, 3), (3, 1)),
        "tensor w: reaches outside its storage (expected at most 6 values, found 9)",
    ),
    (
        "55 strides outside",
        one(0, (2, 3), (4, 1)),
        "tensor w: reaches outside its storage (expected at most 6 values, found 7)",
    ),
    ("55 stride of 2^62", one(0, (5, 2), (2**62, 1)), f"at most 6 values, found {2**64 + 2})"),
    (
        "55 values of two bytes outside",
        zip_file(
            {"w": Call("torch._utils._rebuild_tensor_v3", (BYTES, 0, (7,), (1,), False, None, UINT16))},
            {"0": bytes(13)},
        ),
        "tensor w: reaches outside its storage (expected at most 6 values, found 7)",
    ),
    (
        "55 negative stride",
        one(0, (2, 3), (-3, 1)),
        "has no valid strides (expected 2 steps of 0 or more, found [-3, 1])",
    ),
    (
        "55 one stride",
        one(0, (2, 3), (1,)),
        "tensor w: has no valid strides (expected 2 steps of 0 or more, found [1])",
    ),
    (
        "55 strides that are a list",
        one(0, (2,), [1]),
        "has no valid strides (expected 1 steps of 0 or more, found a list)",
    ),
    (
        "55 repeated without end",
        one(0, (2**40,), (0,)),
        f"tensor w: repeats the values of its storage (expected at most 6 values, found {2**40}). Save a contiguous",
    ),
    (
        "55 windows larger than all",
        one(0, (3, 4), (1, 1)),
        "repeats the values of its storage (expected at most 6 values,",
    ),
    (
        "21 product of 2^64",
        one(0, (2**32, 2**32), (0, 0)),
        "has no valid shape (expected up to 64 sizes, found [4294967296,",
    ),
    ("21 no values of 2^64", one(0, (0, 2**32, 2**32), (0, 0, 0)), "tensor w: has no valid shape"),
    ("22 negative size", one(0, (-2, 3)), "tensor w: has no valid shape (expected up to 64 sizes, found [-2, 3])"),
    (
        "22 fractional size",
        one(0, (2.0, 3)),
        "tensor w: has no valid shape (expected up to 64 sizes, found [a float, 3])",
    ),
    (
        "22 true as a size",
        one(0, (True, 3)),
        "tensor w: has no valid shape (expected up to 64 sizes, found [a bool, 3])",
    ),
    ("22 shape that is a number", one(0, 6), "tensor w: has no valid shape (expected up to 64 sizes, found a int)"),
    (
        "22 shape of deep lists",
        one(0, (Raw(b"]" * 9999 + b"a" * 9998),)),
        "has no valid shape (expected up to 64 sizes, found [a list])",
    ),
    (
        "23 65 sizes",
        one(0, (1,) * 65, (1,) * 65),
        "has no valid shape (expected up to 64 sizes, found [1, 1, 1, 1, 1, 1, 1, 1, ...])",
    ),
    # What is beside the tensors.
    ("a list", zip_file([1], {}), f"file: holds a list, not a dict of tensors. {RESAVE}"),
    ("a tensor", zip_file(view(storage()), DATA), f"file: holds a tensor, not a dict of tensors. {RESAVE}"),
    (
        "a dict in it",
        zip_file({"w": {"v": view(storage())}}, DATA),
        "entry 'w': is a dict, where a tensor with a name is expected",
    ),
    (
        "a storage in it",
        zip_file({"w": storage()}, DATA),
        "entry 'w': is a storage, where a tensor with a name is expected",
    ),
    (
        "a type in it",
        zip_file({"w": Name("torch.uint16")}, {}),
        "entry 'w': is a class or constant, where a tensor with a",
    ),
    (
        "a tensor without a name",
        zip_file({7: view(storage())}, DATA),
        "entry 7: is a tensor, where a tensor with a name is",
    ),
    (
        "an optimizer beside the parameters",
        zip_file({"model": {"w": view(storage())}, "optimizer": {"state": {0: {}}}}, DATA),
        f"entry 'optimizer': is a dict beside 'model', and would be lost. {RESAVE}",
    ),
    (
        "two models",
        zip_file({"model": {"w": view(storage())}, "state_dict": {"w": view(storage())}}, DATA),
        "entry 'model': is a dict beside 'state_dict', and would be lost",
    ),
    (
        "a tensor beside a model",
        zip_file({"model": {"w": view(storage())}, "w": view(storage())}, DATA),
        "entry 'w': is a tensor beside 'model', and would be lost",
    ),
    (
        "a model without tensors",
        zip_file({"model": {"note": 1}, "w": view(storage())}, DATA),
        "entry 'model': is a dict, where a tensor with a name is expected",
    ),
    (
        "a model in a model",
        zip_file({"model": {"model": {"w": view(storage())}}}, DATA),
        "entry 'model': is a dict, where",
    ),
]


@pytest.mark.parametrize(("content", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_file_is_refused_by_name(tmp_path, content, text):
    assert text in cheap_refusal(tmp_path / "pytorch_model.bin", content)


def test_all_that_is_wrong_with_tensors_is_listed_at_once(tmp_path):
    state = {"a": view(storage(), 1), "b": view(storage("7")), "c": [], "d": view(storage()), "e": view(storage("1"))}
    text = refusal(tmp_path / "w.bin", zip_file(state, DATA | {"1": b"abc"}))
    listed = [line.split(":")[0] for line in text.splitlines()]
    assert text.startswith(f"{tmp_path / 'w.bin'}: 4 problems\n")
    assert listed[1:] == ["  - storage '7'", "  - storage '1'", "  - entry 'c'", "  - tensor a"]
