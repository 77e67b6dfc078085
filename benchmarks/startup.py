"""How long a new process takes to the first token of the shipped model, with and without compiled programs kept.

    python benchmarks/startup.py [--rounds 3] [--markdown]

Every round starts two processes, one with an empty compilation cache and one with what the first left there. The
seconds are those of the process that starts them: they include Python itself and every import.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

SCRIPT = """
import json, sys, time
began = time.perf_counter()
import bombus
imported = time.perf_counter()
bombus.use_compilation_cache(sys.argv[1])
name = "bombus/tiny-shakespeare-fp8"
loaded, tokenizer = bombus.load_model(name, preserve_source_types=True), bombus.load_tokenizer(name)
read = time.perf_counter()
piece = next(bombus.generate(loaded, tokenizer, "ROMEO:", stream=True))
first = time.perf_counter()
print(json.dumps({"import": imported - began, "load": read - imported, "first token": first - read}), flush=True)
"""


def start(folder: str) -> dict[str, float]:
    """Seconds to the first piece of text, in all and by part."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", SCRIPT, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parts = json.loads(process.stdout.readline())
        return {"total": time.perf_counter() - began, **parts}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"empty": [], "filled": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in found:
                found[name].append(start(folder))
    rows = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }
    if not options.markdown:
        print(json.dumps(rows, indent=2))
        return
    parts = list(rows["empty"])
    print(f"| compilation cache | {' | '.join(f'{part}, s' for part in parts)} |")
    print("| --- " * (len(parts) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[part]:.2f}' for part in parts)} |")


if __name__ == "__main__":
    main()
