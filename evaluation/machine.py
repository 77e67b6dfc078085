"""The machine, and the memory of this process, as the system knows them."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")
_PROCESSOR = Path("/proc/cpuinfo")
# The instruction sets that decide how fast low precision is.
_NOTABLE = ("asimd", "avx2", "avx512f", "avx512_bf16", "avx512_vbmi", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What measured: the processor's name, those of its instruction sets that matter here, cores, system, Python."""

    processor: str
    instructions: tuple[str, ...]
    cores: int
    system: str
    python: str

    def __str__(self) -> str:
        sets = f" ({', '.join(self.instructions)})" if self.instructions else ""
        return f"{self.processor}{sets}, {self.cores} {'core' if self.cores == 1 else 'cores'}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "instructions": list(self.instructions)}


def this_machine() -> Machine:
    """The machine that this process runs on."""
    try:
        text = _PROCESSOR.read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has it
        text = ""
    name, flags = read_processor(text)
    return Machine(
        processor=name or platform.processor() or platform.machine(),
        instructions=flags,
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def read_processor(text: str) -> tuple[str, tuple[str, ...]]:
    """(the name, the instruction sets that matter here) in the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return fields.get("model name", ""), tuple(flag for flag in _NOTABLE if flag in flags)


def reset_peak_memory() -> int | None:
    """Bytes that the process has now; its high-water mark starts anew from there. None where the system has no such."""
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return None
    return memory("VmRSS")


def peak_memory() -> int | None:
    """The high-water mark of the process in bytes. None where the system does not say."""
    return memory("VmHWM")


def memory(field: str) -> int | None:
    """A field of the process's status, such as RssAnon, in bytes. None where the system does not say."""
    try:
        lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
