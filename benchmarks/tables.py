"""All tables about speed on CPU, measured again and written where they stand: the README, the guide, this folder's.

    python benchmarks/tables.py [--folder DIR] [--only speed kernels start levers]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Takes about half an hour on two cores, which should
have nothing else to do. DIR keeps the checkpoints.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen3_0_6b import BF16, FP8, OURS, TRANSFORMERS, WORKLOADS, as_markdown, make_checkpoint

from bombus.evaluation import markdown_table, this_machine

HERE = Path(__file__).resolve().parent
FILES = (HERE.parent / "README.md", HERE.parent / "docs" / "performance.md", HERE / "README.md")


def measured(script: str, *arguments: str) -> str:
    """What one of the scripts here prints."""
    print(f"{script} {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def speed(folder: Path) -> dict[str, str]:
    """Beside transformers and llama.cpp: everything, and the few lines of the README."""
    found = json.loads(measured("qwen3_0_6b.py", "--folder", str(folder)))
    return {"speed": as_markdown(found), "speed, in short": in_short(found)}


def in_short(found: Mapping[str, Any]) -> str:
    """A line for each contender: tokens per second, and in brackets the ratio to transformers."""
    ratios = found["times_as_fast_as"].get(TRANSFORMERS, {})
    rows = [["Qwen3-0.6B shape", *WORKLOADS, "peak memory over weights and cache"]]
    for name, result in found["results"].items():
        cells = []
        for work in WORKLOADS:
            value = result[f"{work}, tokens per second"]
            ratio = f" ({ratios[name][work]}x)" if name in ratios and name != TRANSFORMERS else ""
            cells.append(f"{value:.1f}{ratio}")
        memory = result["peak memory while generating, 1 row, over weights and cache"]
        rows.append([name, *cells, f"{memory:.2f}" if name in OURS else ""])
    machine = f"{found['described']}, which reads {found['read_bandwidth_gigabytes_per_second']} GB/s"
    return f"{markdown_table(rows)}\n\nTokens per second, in brackets times transformers; {machine}."


def kernels(folder: Path) -> dict[str, str]:
    """The products alone."""
    return {"kernels": measured("kernels.py", "--markdown")}


def start(folder: Path) -> dict[str, str]:
    """From the start of a process to the first token: of 28 layers in FP8 and int4, and of the model that ships."""
    tables = []
    for name, stored, policy in (("FP8", FP8, []), ("int4", BF16, ["--policy", "int4"])):
        make_checkpoint(folder / stored, stored, 28)
        found = measured("startup.py", str(folder / stored), *policy, "--markdown")
        tables.append(found.replace(str(folder / stored), f"28 layers, {name}"))
    return {"start": "\n\n".join([*tables, measured("startup.py", "--markdown")])}


def levers(folder: Path) -> dict[str, str]:
    """One table for each lever."""
    found = json.loads(measured("levers.py", "--folder", str(folder)))
    return {name: markdown_table(rows) for name, rows in found.items() if isinstance(rows, list)}


PARTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "speed": speed,
    "kernels": kernels,
    "start": start,
    "levers": levers,
}


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text with these tables in place of those that it has under their names."""

    def replaced(match: re.Match[str]) -> str:
        table = tables.get(match["name"])
        return match[0] if table is None else f"{match['begin']}\n{table}\n{match['end']}"

    pattern = r"(?P<begin><!-- table: (?P<name>[^>]*) -->)\n.*?(?P<end><!-- end -->)"
    return re.sub(pattern, replaced, text, flags=re.DOTALL)


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    print(this_machine(), file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.only:  # written at once, so that what fails later loses nothing
            tables = PARTS[part](options.folder or Path(temporary))
            for file in FILES:
                file.write_text(with_tables(file.read_text("utf-8"), tables), "utf-8")


if __name__ == "__main__":
    main()
