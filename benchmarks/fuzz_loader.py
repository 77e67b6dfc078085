"""Damaged files for every reader of the loader, for as long as one likes.

    python benchmarks/fuzz_loader.py --minutes 60 [--target NAME] [--seed 0]

The targets are those of tests/support/fuzzing.py, in turns. Anything but an error of Bombus is a finding, as is an
input that takes more than 20 seconds or needs more than 8 GB of address space beyond the start. Prints JSON:
executions, inputs that were refused, and findings, each with the input that hypothesis made as small as it could.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import hypothesis
from fuzzing import Target, fresh, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bombus

EXAMPLES = 300
SECONDS = 20
ADDRESS_SPACE = 8 << 30


def fuzz(target: Target, folder: Path, seed: int) -> dict[str, Any]:
    """One turn of a target: what was executed and refused, and the finding, if there was one."""
    counts = {"executions": 0, "refused": 0}
    last: list[Any] = [None]

    @hypothesis.seed(seed)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        last[0] = data.draw(target.inputs)
        counts["executions"] += 1
        signal.alarm(SECONDS)
        try:
            target.read(fresh(folder), last[0])
        except bombus.BombusError:
            counts["refused"] += 1
        finally:
            signal.alarm(0)

    try:
        run()
    except Exception as error:  # whatever it is, it is a finding
        trace = traceback.format_exception(error)[-6:]
        return counts | {"finding": {"input": repr(last[0])[:2000], "error": repr(error)[:500], "trace": trace}}
    return counts


def main() -> None:
    """Take the targets in turns until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    seeds = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    totals: dict[str, Any] = {}
    findings = []
    with tempfile.TemporaryDirectory() as temporary:
        known = [
            target for target in targets(fresh(Path(temporary) / "whole")) if options.target in (None, target.name)
        ]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
        while time.monotonic() < end:
            for target in known:
                found = fuzz(target, Path(temporary) / "now", seeds.getrandbits(32))
                total = totals.setdefault(target.name, {"executions": 0, "refused": 0, "findings": 0})
                for key in ("executions", "refused"):
                    total[key] += found[key]
                if "finding" in found:
                    total["findings"] += 1
                    findings.append({"target": target.name, **found["finding"]})
                    print(json.dumps(findings[-1], indent=2), file=sys.stderr, flush=True)
    print(json.dumps({"minutes": options.minutes, "targets": totals, "findings": findings}, indent=2))


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {SECONDS} seconds")


if __name__ == "__main__":
    main()
