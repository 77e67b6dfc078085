"""Reads pickles and runs nothing of theirs.

Known are the opcodes of protocols 2 to 5 that `torch.save` writes for tensors and plain values, and those of Python
2's texts; all others are refused by name. Everything is bounded: bytes, texts, memo, marks, and the number of opcodes,
and with it the depth of the stack and the number of values.

Source: CPython's Lib/pickletools.py, which also gives the opcodes their names.
"""

from __future__ import annotations

from collections.abc import Callable
from pickletools import opcodes
from struct import Struct
from typing import Any, BinaryIO

from bombus.loader.pickle_machine import CONVERT, Function, Invalid, Machine, Names
from bombus.policies.errors import CheckpointError, Problem

_MAX_OPCODES = 5_000_000  # torch.save writes 42 for a parameter
_U8, _U16, _U32, _I32, _F64 = (Struct(layout) for layout in ("<B", "<H", "<I", "<i", ">d"))


def interpret(
    file: BinaryIO, *, where: str, names: Names | None = None, persistent: Function | None = None
) -> tuple[Any, int]:
    """(the value of the pickle that starts at the file's position, the number of its bytes).

    `persistent` gives the value of a persistent id. Raises CheckpointError with all names that are not in `names`,
    up to the end of the pickle or to what else is wrong with it.
    """
    machine = Machine(file, names or Names(), persistent)
    problems, value = [], None
    try:
        value = _run(machine)
    except Invalid as error:
        message = f"is not valid at byte {machine.position}: {error}"
        problems = [Problem(subject="pickle", message=message, remedy=error.remedy)]
    if machine.refused:  # What does not fit behind them is no problem of its own.
        problems = [_refusal(name, machine.names) for name in machine.refused]
    if problems:
        raise CheckpointError(problems, where=where)
    return value, machine.position


def _run(machine: Machine) -> Any:
    for _ in range(_MAX_OPCODES):
        code = machine.take(1)
        if code in _PUSHES:
            value = _PUSHES[code](machine)  # which may change what the stack is
            machine.stack.append(value)
        elif code in _CHANGES:
            _CHANGES[code](machine)
        elif code == _STOP:
            (value,) = machine.pop(1)
            if machine.stack or machine.marks:
                raise Invalid("values are left on the stack")
            return value
        elif code in _OPCODES:
            raise Invalid(f"the opcode {_OPCODES[code]} is not supported", CONVERT)
        else:
            raise Invalid(f"{code[0]} is no opcode")
    raise Invalid(f"it has more than {_MAX_OPCODES} opcodes", CONVERT)


def _refusal(name: str, names: Names) -> Problem:
    if name in names.unsupported:
        message, remedy = f"stands for {names.unsupported[name]}, which is not read", "save a plain tensor in its place"
    else:
        message, remedy = "is not a name that a checkpoint may use; it was not executed", CONVERT
    return Problem(subject=f"global {name if name.isprintable() else repr(name)}", message=message, remedy=remedy)


def _protocol(machine: Machine) -> None:
    version = machine.number(_U8)
    if not 2 <= version <= 5:
        raise Invalid(f"protocol {version} is not supported", CONVERT)


# Opcodes that push one value, and what it is.
_PUSHES_BY_NAME: dict[str, Callable[[Machine], Any]] = {
    "NONE": lambda machine: None,
    "NEWTRUE": lambda machine: True,
    "NEWFALSE": lambda machine: False,
    "BININT": lambda machine: machine.number(_I32),
    "BININT1": lambda machine: machine.number(_U8),
    "BININT2": lambda machine: machine.number(_U16),
    "LONG1": lambda machine: int.from_bytes(machine.counted(1), "little", signed=True),
    "BINFLOAT": lambda machine: machine.number(_F64),
    "BINUNICODE": lambda machine: machine.text(4),
    "SHORT_BINUNICODE": lambda machine: machine.text(1),
    "BINUNICODE8": lambda machine: machine.text(8),
    "BINSTRING": lambda machine: machine.text(4),  # this and the next one: Python 2
    "SHORT_BINSTRING": lambda machine: machine.text(1),
    "EMPTY_LIST": lambda machine: [],
    "EMPTY_DICT": lambda machine: {},
    "EMPTY_TUPLE": lambda machine: (),
    "TUPLE1": lambda machine: tuple(machine.pop(1)),
    "TUPLE2": lambda machine: tuple(machine.pop(2)),
    "TUPLE3": lambda machine: tuple(machine.pop(3)),
    "TUPLE": lambda machine: tuple(machine.pop_mark()),
    "BINGET": lambda machine: machine.get(machine.number(_U8)),
    "LONG_BINGET": lambda machine: machine.get(machine.number(_U32)),
    "GLOBAL": lambda machine: machine.name(machine.line(), machine.line()),
    "STACK_GLOBAL": lambda machine: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine: machine.call(*machine.pop(2)),
    "NEWOBJ": lambda machine: machine.call(*machine.pop(2)),
    "BUILD": lambda machine: machine.build(*machine.pop(2)),
    "BINPERSID": lambda machine: machine.refer(*machine.pop(1)),
}
# Opcodes that push nothing.
_CHANGES_BY_NAME: dict[str, Callable[[Machine], object]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine: machine.take(8),
    "MARK": lambda machine: machine.mark(),
    "APPEND": lambda machine: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine: machine.update(machine.pop_mark()),
    "BINPUT": lambda machine: machine.put(machine.number(_U8)),
    "LONG_BINPUT": lambda machine: machine.put(machine.number(_U32)),
    "MEMOIZE": lambda machine: machine.put(len(machine.memo)),
}
_OPCODES = {opcode.code.encode("latin-1"): opcode.name for opcode in opcodes}
_PUSHES = {code: _PUSHES_BY_NAME[name] for code, name in _OPCODES.items() if name in _PUSHES_BY_NAME}
_CHANGES = {code: _CHANGES_BY_NAME[name] for code, name in _OPCODES.items() if name in _CHANGES_BY_NAME}
_STOP = next(code for code, name in _OPCODES.items() if name == "STOP")
