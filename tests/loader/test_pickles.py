"""The machine that reads pickles: what it makes of each opcode, what it refuses and in which words, what it bounds."""

from __future__ import annotations

import io
import pickletools
import struct
import tracemalloc

import pytest
import torch_files
from torch_files import Call, Name, Raw, pickled

from bombus.loader import pickle_machine, pickles
from bombus.loader.pickle_machine import Global, Names
from bombus.loader.pickles import interpret
from bombus.policies.errors import CheckpointError

AGAIN = "Download the file again"
CONVERT = "Convert it with the safetensors library where you trust it"


def value_of(data, **options):
    value, length = interpret(io.BytesIO(data), where="w.bin", **options)
    assert length == len(data)
    return value


def refusal(data, **options):
    with pytest.raises(CheckpointError) as caught:
        interpret(io.BytesIO(data), where="w.bin", **options)
    return str(caught.value)


# Opcode -> a pickle with it, and its value.
VALUES = {
    "PROTO": (b"\x80\x05N.", None),
    "FRAME": (b"\x80\x04\x95\x02\0\0\0\0\0\0\0N.", None),
    "NONE": (b"N.", None),
    "NEWTRUE": (b"\x88.", True),
    "NEWFALSE": (b"\x89.", False),
    "BININT": (b"J\xfe\xff\xff\xff.", -2),
    "BININT1": (b"K\xff.", 255),
    "BININT2": (b"M\xfe\xff.", 65534),
    "LONG1": (b"\x8a\x09\0\0\0\0\0\0\0\0\x80.", -(2**71)),
    "BINFLOAT": (b"G" + struct.pack(">d", -1.25) + b".", -1.25),
    "BINUNICODE": (b"X\x02\0\0\0\xc3\xa4.", "ä"),
    "SHORT_BINUNICODE": (b"\x8c\x02\xc3\xa4.", "ä"),
    "BINUNICODE8": (b"\x8d\x02\0\0\0\0\0\0\0\xc3\xa4.", "ä"),
    "BINSTRING": (b"T\x02\0\0\0ab.", "ab"),
    "SHORT_BINSTRING": (b"U\x02ab.", "ab"),
    "EMPTY_LIST": (b"].", []),
    "EMPTY_DICT": (b"}.", {}),
    "EMPTY_TUPLE": (b").", ()),
    "TUPLE1": (b"K\1\x85.", (1,)),
    "TUPLE2": (b"K\1K\2\x86.", (1, 2)),
    "TUPLE3": (b"K\1K\2K\3\x87.", (1, 2, 3)),
    "MARK": (b"(t.", ()),
    "TUPLE": (b"(K\1(K\2K\3tK\4t.", (1, (2, 3), 4)),
    "APPEND": (b"]K\1aK\2a.", [1, 2]),
    "APPENDS": (b"](K\1K\2e(e.", [1, 2]),
    "SETITEM": (b"}K\1K\2sK\3K\4s.", {1: 2, 3: 4}),
    "SETITEMS": (b"}(K\1K\2K\3K\4u(u.", {1: 2, 3: 4}),
    "BINPUT": (b"](K\1q\7K\2h\7e.", [1, 2, 1]),
    "BINGET": (b"K\1q\0K\2q\1h\0\x87.", (1, 2, 1)),
    "LONG_BINPUT": (b"](K\1r\7\1\0\0K\2j\7\1\0\0e.", [1, 2, 1]),
    "LONG_BINGET": (b"](K\1q\7K\2j\7\0\0\0e.", [1, 2, 1]),
    "MEMOIZE": (b"](K\1\x94K\2\x94h\1h\0e.", [1, 2, 2, 1]),
    "GLOBAL": (b"(cmodule\npair\nK\1t.", ("module.pair", 1)),
    "STACK_GLOBAL": (b"(\x8c\6module\x8c\4pair\x93K\1t.", ("module.pair", 1)),
    "REDUCE": (b"cmodule\npair\nK\1K\2\x86R.", {"pair": (1, 2)}),
    "NEWOBJ": (b"cmodule\npair\nK\1K\2\x86\x81.", {"pair": (1, 2)}),
    "BUILD": (b"}K\1K\2s}\x8c\1aK\1sb.", {1: 2}),
    "BINPERSID": (b"(K\1K\2tQ.", ["id", 1, 2]),
    "STOP": (b"K\1.", 1),
}
NAMES = Names(functions={"module.pair": lambda arguments: {"pair": arguments}})


def plain(value):
    """Globals by name, for a comparison."""
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value.name if isinstance(value, Global) else value


@pytest.mark.parametrize("name", VALUES)
def test_the_value_of_each_opcode(name):
    data, expected = VALUES[name]
    found = plain(value_of(data, names=NAMES, persistent=lambda identity: ["id", *identity]))
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("opcode", [o for o in pickletools.opcodes if o.name not in VALUES], ids=lambda o: o.name)
def test_every_other_opcode_is_refused_by_name(opcode):
    text = refusal(b"\x80\x04" + opcode.code.encode("latin-1") + bytes(20))
    assert text == (f"w.bin: pickle: is not valid at byte 3: the opcode {opcode.name} is not supported. {CONVERT}")


def test_equal_values_of_the_memo_are_one_object_and_a_value_may_hold_itself():
    first, second, self_reference = value_of(b"(]q\0h\0]q\1h\1at.")
    assert first is second
    assert self_reference[0] is self_reference


def test_a_pickle_is_read_up_to_its_end_and_no_further():
    file = io.BytesIO(b"spare" + b"\x80\x02K\x01." + b"\x80\x02K\x02." + b"spare")
    file.read(5)
    assert interpret(file, where="w.bin") == (1, 5)
    assert interpret(file, where="w.bin") == (2, 5)
    assert file.read() == b"spare"


def test_a_name_that_is_not_known_is_refused_and_not_executed(tmp_path):
    made = tmp_path / "made by the pickle"
    hostile = Call("os.mkdir", (str(made),))
    assert refusal(pickled({"w": hostile})) == (
        "w.bin: global os.mkdir: is not a name that a checkpoint may use; it was not executed. "
        "Convert it with the safetensors library where you trust it"
    )
    assert not made.exists()


def test_all_names_that_are_not_known_are_listed_once():
    foreign = [
        Call("builtins.eval", ("1",)),
        Call("module.pair", (Call("builtins.eval", ("1",)),)),
        # As protocol 4 makes an object of a class, with items, keys and attributes.
        Raw(b"\x8c\x08argparse\x8c\x09Namespace\x93)\x81}b(K\1eK\2a(K\1K\2uK\1K\2s"),
        Name("module.constant"),
    ]
    text = refusal(pickled(foreign), names=NAMES)
    listed = [line.strip() for line in text.splitlines()[1:]]
    assert text.startswith("w.bin: 3 problems\n")
    assert [line.split(": ")[0] for line in listed] == [
        "- global builtins.eval",
        "- global argparse.Namespace",
        "- global module.constant",
    ]


def test_what_is_wrong_behind_a_refused_name_is_no_problem_of_its_own():
    text = refusal(b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nC\x01a\x86R.")
    assert "the opcode" not in text
    assert "global numpy.core.multiarray.scalar" in text
    assert "global numpy.dtype" in text


def test_a_known_name_has_words_of_its_own_and_a_strange_one_is_escaped():
    names = Names(unsupported={"module.sparse": "a sparse tensor"})
    assert refusal(pickled(Call("module.sparse")), names=names) == (
        "w.bin: global module.sparse: stands for a sparse tensor, which is not read. Save a plain tensor in its place"
    )
    assert "global 'os.\\x1b[2J': is not a name" in refusal(pickled(Name("os.\x1b[2J")))


def test_names_that_are_not_known_are_listed_up_to_a_hundred():
    text = refusal(pickled([Name(f"module.name{number}") for number in range(1000)]))
    assert text.startswith("w.bin: 100 problems\n")
    assert "name99:" in text
    assert "name100:" not in text


INVALID = [
    (b"", 0, "it ends early", AGAIN),
    (b"\x80", 1, "it ends early", AGAIN),
    (b"\x80\x02K\x01", 4, "it ends early", AGAIN),
    (b"X\x05\0\0\0abc.", 9, "it ends early", AGAIN),
    (b"J\x01\0.", 4, "it ends early", AGAIN),
    (b"\x80\x01N.", 2, "protocol 1 is not supported", CONVERT),
    (b"\x80\x06N.", 2, "protocol 6 is not supported", CONVERT),
    (b"\xff.", 1, "255 is no opcode", AGAIN),
    (b".", 1, "a value is missing on the stack", AGAIN),
    (b"\x85.", 1, "a value is missing on the stack", AGAIN),
    (b"K\1\x86.", 3, "a value is missing on the stack", AGAIN),
    # A mark starts a stack of its own: what is below it cannot be reached.
    (b"K\1(\x85.", 4, "a value is missing on the stack", AGAIN),
    (b"q\0.", 2, "a value is missing on the stack", AGAIN),
    (b"t.", 1, "a mark is missing on the stack", AGAIN),
    (b"NN.", 3, "values are left on the stack", AGAIN),
    (b"(N.", 3, "values are left on the stack", AGAIN),
    (b"h\3.", 2, "nothing is at place 3 of the memo", AGAIN),
    (b"Nr\x80\x84\x1e\0.", 6, "the memo has more than 2000000 places", CONVERT),
    (b"(" * 1001, 1001, "more than 1000 marks are open", CONVERT),
    (b"K\1K\2a.", 5, "values are appended to a int", AGAIN),
    (b"K\1K\2K\3s.", 7, "keys are set in a int", AGAIN),
    (b"cmodule\nconstant\nK\1a.", 20, "values are appended to a Global", AGAIN),
    (b"}(K\1u.", 5, "a key has no value", AGAIN),
    (b"}\x8c\1aK\1s\x8c\1aK\1s.", 13, "a dict has the key 'a' twice", AGAIN),
    (b"})Ns.", 4, "a dict has a key that is a tuple, or too large", CONVERT),
    (b"}\x88Ns.", 4, "a dict has a key that is a bool, or too large", CONVERT),
    (b"}\x8a\5\0\0\0\0\1Ns.", 10, "a dict has a key that is a int, or too large", CONVERT),
    (b"}cmodule\npair\nNs.", 16, "a dict has a key that is a Global, or too large", CONVERT),
    (b"X\x02\0\0\0\xff\xfe.", 7, "a text is not UTF-8", AGAIN),
    (b"cos\nsystem", 10, "a name ends early, or is too long", AGAIN),
    (b"c" + b"a" * 2000 + b"\nb\n.", 1001, "a name ends early, or is too long", AGAIN),
    (b"\x8c\x02osK\1\x93.", 7, "a global has no name, or one that is too long", AGAIN),
    (b"X\xe9\x03\0\0" + b"a" * 1001 + b"\x8c\1b\x93.", 1010, "a global has no name, or one that is too long", AGAIN),
    (b"cmodule\npair\nK\1R.", 16, "something is called that is no function, or with no arguments", AGAIN),
    (b"K\1)R.", 4, "something is called that is no function, or with no arguments", AGAIN),
    (b"cmodule\nconstant\n)R.", 19, "module.constant is called, which is no function", AGAIN),
    (b"K\1}b.", 4, "attributes are set on a int", CONVERT),
    (b")Q.", 2, "a persistent id stands where none is expected", AGAIN),
]


@pytest.mark.parametrize(("data", "position", "what", "remedy"), INVALID)
def test_a_damaged_pickle_is_refused(data, position, what, remedy):
    names = Names(functions=NAMES.functions, constants={"module.constant"})
    assert refusal(data, names=names) == f"w.bin: pickle: is not valid at byte {position}: {what}. {remedy}"


def test_a_persistent_id_that_is_no_tuple_is_refused():
    assert "a persistent id stands where none is expected" in refusal(b"K\1Q.", persistent=lambda identity: 1)


CLAIMS = {
    "BINUNICODE": b"X\xff\xff\xff\xff",
    "BINSTRING": b"T\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + b"\xff" * 8,
    "memo": b"Nr\xff\xff\xff\xff",
    "frame": b"\x95" + b"\xff" * 8,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_takes_no_memory(name):
    tracemalloc.start()
    try:
        refusal(b"\x80\x04" + CLAIMS[name] + b"abc")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_texts_are_bounded_each_and_together(monkeypatch):
    assert "a text has 1000001 bytes, more than 1000000" in refusal(pickled("a" * 1_000_001))
    assert len(value_of(pickled("a" * 1_000_000))) == 1_000_000
    monkeypatch.setattr(pickle_machine, "MAX_BYTES", 1000)
    assert len(value_of(pickled(["a" * 500, "b" * 500]))) == 2
    assert "its texts have more than 1000 bytes" in refusal(pickled(["a" * 500, "b" * 501]))
    # 502 bytes of opcodes for each name: the second is made of what is in the memo.
    both = b"(X\xf4\1\0\0" + b"a" * 500 + b"q\0h\0\x93h\0h\0\x93t."
    assert "its texts have more than 1000 bytes" in refusal(both, names=Names(constants={f"{'a' * 500}.{'a' * 500}"}))


def test_opcodes_are_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "_MAX_OPCODES", 100)
    assert value_of(b"](" + b"K\1" * 96 + b"e.") == [1] * 96
    assert refusal(b"](" + b"K\1" * 97 + b"e.") == (
        f"w.bin: pickle: is not valid at byte 197: it has more than 100 opcodes. {CONVERT}"
    )


@pytest.mark.parametrize(
    "code",
    [
        b")" + b"\x85" * 300_000 + b".",
        b"]" * 300_000 + b"a" * 299_999 + b".",
        b"}" + b"\x8c\1a}" * 300_000 + b"s" * 300_000 + b".",
    ],
    ids=["tuples", "lists", "dicts"],
)
def test_depth_is_no_problem(code):
    assert type(value_of(code)) in (tuple, list, dict)


def test_a_deep_key_is_refused_before_it_is_hashed():
    # The hash of a tuple recurses in C: this would be the end of the process.
    assert "a dict has a key that is a tuple" in refusal(b"})" + b"\x85" * 300_000 + b"Ns.")


def test_numbers_that_all_have_one_hash_are_no_keys():
    number = (2**61 - 1).to_bytes(9, "little")
    assert "too large" in refusal(b"}\x8a\x09" + number + b"Ns.")


def test_the_support_writes_what_is_read():
    value = {"a": [1, -5, 2**40, -(2**70), 1.5, None, True, False, "ä", (), (1, (2,))], "b": {}, 7: []}
    assert value_of(pickled(value)) == value
    assert value_of(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.") == torch_files.MAGIC
