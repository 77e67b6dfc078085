"""`bombus env`: the versions, devices, kernels and folders that a run of Bombus would use here."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib

import bombus
from bombus.arguments import add_command
from bombus.evaluation.machine import this_machine
from bombus.kernels import native
from bombus.loader.cache import cache_folder
from bombus.loader.report import readable_bytes

_BUILD = "install a C++ compiler (g++ or clang++) and then Bombus again: pip install --force-reinstall --no-deps bombus"
_UNSET = f"unset {native.VARIABLE} to use the C++ kernels"


def add_env_command(commands: Any) -> None:
    """Add the command to those of the command line."""
    command = add_command(commands, "env", _env, "what runs here: versions, devices, kernels, and folders of caches")
    command.add_argument("--json", action="store_true", help="print JSON")


def _env(options: argparse.Namespace) -> None:
    found = environment()
    print(json.dumps(found, indent=2) if options.json else _shown(found))


def environment() -> dict[str, Any]:
    """What runs here, as plain data: `versions`, `machine`, `devices`, `kernels`, `folders`.

    Raises PolicyError where $BOMBUS_KERNELS names kernels that cannot be used.
    """
    devices = jax.devices()
    return {
        "versions": {
            "bombus": bombus.__version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "flax": flax.__version__,
        },
        "machine": this_machine().to_json(),
        "devices": {"platform": jax.default_backend(), "names": [str(device) for device in devices]},
        "kernels": _kernels(),
        "folders": _folders(),
    }


def _kernels() -> dict[str, Any]:
    """Which kernels multiply on CPU, which could, and why; what to do where XLA's own operations do."""
    reason, chosen = native.library().reason, os.environ.get(native.VARIABLE) or None
    remedy = None if reason is None else _UNSET if chosen == native.XLA else _BUILD
    return {
        "in_use": native.kernels_in_use(),
        "available": list(native.available()),
        "variable": chosen,
        "reason": reason,
        "remedy": remedy,
    }


def _folders() -> dict[str, dict[str, Any]]:
    parameters = cache_folder()
    programs = Path(jax.config.values["jax_compilation_cache_dir"] or parameters / "compiled")
    # By default the programs are inside.
    within = _size(programs) if programs.is_relative_to(parameters) else 0
    return {
        "parameters": {"path": str(parameters), "bytes": _size(parameters) - within},
        "programs": {"path": str(programs), "bytes": _size(programs)},
    }


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(inside, name)).st_size
            except FileNotFoundError:  # somebody else's, removed meanwhile
                continue
    return total


def _shown(found: dict[str, Any]) -> str:
    versions, machine, devices, kernels = (found[name] for name in ("versions", "machine", "devices", "kernels"))
    lines = [f"{name:12} {version}" for name, version in versions.items()]
    lines += [
        f"{'processor':12} {machine['processor']}, {machine['cores']} cores",
        f"{'instructions':12} {', '.join(machine['instructions']) or 'none that matter here'}",
        f"{'system':12} {machine['system']}",
        f"{'platform':12} {devices['platform']}: {', '.join(devices['names'])}",
        f"{'kernels':12} {_kernels_shown(kernels)}",
        f"{'available':12} {', '.join([*kernels['available'], native.XLA])}; choose with {native.VARIABLE}",
    ]
    if kernels["remedy"]:
        lines.append(f"{'':12} {kernels['remedy']}")
    for name, folder in found["folders"].items():
        lines.append(f"{name:12} {folder['path']}, {readable_bytes(folder['bytes'])}")
    return "\n".join(lines)


def _kernels_shown(kernels: dict[str, Any]) -> str:
    if kernels["reason"]:
        return f"XLA's own operations, several times slower on CPU: {kernels['reason']}"
    how = f"{native.VARIABLE}={kernels['variable']}" if kernels["variable"] else "the best for this processor"
    return f"{kernels['in_use']}, {how}"
