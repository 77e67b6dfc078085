"""How long a new process takes to a model's first token, with nothing kept from earlier ones and with all of it.

    python benchmarks/startup.py [MODEL] [--rounds 3] [--map] [--markdown]

Every round starts two processes: one with an empty compilation cache, and one with what the first left there. The
total is that of the process that starts them, with Python itself and every import in it. MODEL is the shipped one by
default. With --map converted parameters are kept too, and the second process maps them in place of reading them.
"processor" is the time of all its threads until it ends, which says more than the rest on a machine that is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """
import json, sys, time
began = time.perf_counter()
import bombus
name, programs, parameters = sys.argv[1:]
bombus.use_compilation_cache(programs)
from bombus.generation.engine import Run
from bombus.generation.request import make_request
imported = time.perf_counter()
loaded = bombus.load_model(name, preserve_source_types=True, cache=parameters or None, progress=False)
tokenizer = bombus.load_tokenizer(name)
read = time.perf_counter()
# Not the first piece of a stream: of random weights the first token may be half of a character.
request = make_request(loaded, [tokenizer.encode("ROMEO:")], {}, has_text=True)
run = Run(loaded, request)
next(run.pieces(1))
first = time.perf_counter()
result = {"import": imported - began, "load": read - imported, "first token": first - read}
print(json.dumps({**result, "of it programs": run.results()[0].timings.compile_seconds}), flush=True)
"""


def start(model: str, folder: Path, maps: bool) -> dict[str, float]:
    """Seconds to the first token, in all and by part."""
    # As where the package is installed, which compiles Python's files.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    arguments = [model, str(folder / "compiled"), str(folder / "parameters") if maps else ""]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", SCRIPT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        total = time.perf_counter() - began
    if process.returncode:
        raise SystemExit("the process above failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"total": total, "processor": processor, **json.loads(line)}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bombus/tiny-shakespeare-fp8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--map", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        start(options.model, Path(folder), options.map)  # compiles Python's files, and has the model's in memory
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in found:
                found[name].append(start(options.model, Path(folder), options.map))
    rows = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }
    if not options.markdown:
        print(json.dumps({"model": options.model, "rounds": options.rounds, **rows}, indent=2))
        return
    parts = list(rows["cold"])
    print(f"| {options.model} | {' | '.join(f'{part}, s' for part in parts)} |")
    print("| --- " * (len(parts) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[part]:.2f}' for part in parts)} |")


if __name__ == "__main__":
    main()
