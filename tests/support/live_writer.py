"""A program that has a file half written until its standard input ends.

    python live_writer.py PATH

It prints the name of its partial file, waits, and finishes `PATH`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bombus.loader.write import TensorWriter

VALUES = np.arange(1000, dtype=np.float32)

if __name__ == "__main__":
    path = Path(sys.argv[1])
    with TensorWriter(path, {"values": (VALUES.shape, VALUES.dtype)}) as writer:
        print(*(each.name for each in path.parent.glob(".*.partial")), flush=True)
        sys.stdin.read()
        writer.write("values", VALUES)
