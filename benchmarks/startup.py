"""How long a new process takes to a model's first token, with nothing kept from earlier ones and with all of it.

    python benchmarks/startup.py [MODEL] [--policy FORMAT] [--rounds 3] [--map] [--markdown]

Every round starts two processes: one with an empty compilation cache, and one with what the first left there. The
total is that of the process that starts them, with Python itself and every import in it. MODEL is the shipped one by
default, in its own types or by a policy. With --map converted parameters are kept too, and the second process maps
them in place of reading them. "processor" is the time of all threads until the first token, which says more than the
rest on a machine that is busy. "memory" is what the process holds at most while it makes 32 more tokens, above what it
held before the load of the model, over weights and cache.
"""

from __future__ import annotations

import argparse
import json
import os
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
name, programs, parameters, policy = sys.argv[1:]
bombus.use_compilation_cache(programs)
import jax
from bombus.evaluation.machine import memory, peak_memory, reset_peak_memory
from bombus.generation.engine import Run
from bombus.generation.request import make_request
jax.block_until_ready(jax.numpy.zeros(1) + 1)
imported = time.perf_counter()
tokenizer = bombus.load_tokenizer(name)
before = memory("VmRSS") or 0
options = {"policy": policy} if policy else {"preserve_source_types": True}
loaded = bombus.load_model(name, **options, cache=parameters or None, progress=False)
read = time.perf_counter()
# Not the first piece of a stream: of random weights the first token may be half of a character.
options = {"max_new_tokens": 33, "stop_token_ids": ()}
request = make_request(loaded, [tokenizer.encode("ROMEO:")], options, has_text=True)
run = Run(loaded, request)
pieces = run.pieces(32)
next(pieces)
first, processor = time.perf_counter(), time.process_time()
print(flush=True)
times = run.results()[0].timings
result = {"import, s": imported - began, "load, s": read - imported, "first token, s": first - read}
result |= {"of it programs, s": times.compile_seconds, "processor, s": processor}
# Again from the start, when all programs are there.
list(pieces)
reset_peak_memory()
list(Run(loaded, request).pieces(32))
peak, slots = (peak_memory() or 0) - before, request.bucket + request.plan.new_tokens
result["memory"] = peak / (loaded.report.nbytes + loaded.model.init_cache(1, slots).nbytes)
print(json.dumps(result), flush=True)
"""


def start(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds to the first token, in all and by part, and memory."""
    # As where the package is installed, which compiles Python's files.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    arguments = [options.model, str(folder / "compiled"), str(folder / "parameters") if options.map else ""]
    began = time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, *arguments, options.policy]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        total = time.perf_counter() - began
        line = process.stdout.readline()
    if process.returncode:
        raise SystemExit("the process above failed")
    return {"total, s": total, **json.loads(line)}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bombus/tiny-shakespeare-fp8")
    parser.add_argument("--policy", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--map", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        start(options, Path(folder))  # compiles Python's files, and has the model's in memory
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in found:
                found[name].append(start(options, Path(folder)))
    rows = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }
    if not options.markdown:
        print(json.dumps({"model": options.model, "rounds": options.rounds, **rows}, indent=2))
        return
    parts = list(rows["cold"])
    print(f"| {options.model} | {' | '.join(parts)} |")
    print("| --- " * (len(parts) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[part]:.2f}' for part in parts)} |")


if __name__ == "__main__":
    main()
