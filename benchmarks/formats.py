"""Bits and errors of every storage format, beside the figures of the project's reference.

    python benchmarks/formats.py [--json]

Prints a Markdown table, or JSON: bits per weight of a 4096x4096 weight, and the root mean square error relative to
that of the weight, in percent, for 512x2048 values of a normal distribution and of Student's t with 4 degrees of
freedom (heavy tails, as trained weights have). Exits with 1 when a figure is more than 10% from its reference.
"""

from __future__ import annotations

import argparse
import json
import sys

import jax.numpy as jnp
import numpy as np

from bombus.kernels import dequantize, quantize
from bombus.policies.formats import find_format

SHAPE = (512, 2048)
# Measured elsewhere for the project's reference (formats.md): normal and Student-t(4), in percent.
REFERENCE: dict[str, tuple[float, float] | None] = {
    "f8_e4m3fn": (2.64, 2.63),
    "f8_e4m3fn(tile=channel)": None,
    "f8_e4m3fn(tile=tensor)": None,
    "f8_e5m2": None,
    "int8": (0.83, 2.4),
    "int8(group=32)": (0.54, 0.74),
    "int4": (11.7, 19.2),
    "int4(group=32)": (9.7, 13.1),
    "int4(group=64, zero_points)": (9.0, 11.8),
    "bfp8": (0.73, 0.89),
    "bfp4": (11.7, 14.0),
    "bfp4(scale_rule=search)": (11.1, 13.4),
    "mxfp8": (2.9, 3.2),
    "mxfp8(element=f8_e5m2)": (5.4, 5.5),
    "mxfp4": (11.5, 13.1),
    "mxfp4(scale_rule=even)": None,
    "mxfp4(scale_rule=ceil)": None,
    "nvfp4": (9.5, 9.2),
}


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure()
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    far = [row["format"] for row in rows if any(abs(ratio - 1) > 0.1 for ratio in row["to reference"])]
    if far:
        sys.exit(f"more than 10% from the reference: {', '.join(far)}")


def measure() -> list[dict]:
    """One record per format."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal(SHAPE).astype(np.float32), random.standard_t(4, SHAPE).astype(np.float32)]
    rows = []
    for text, reference in REFERENCE.items():
        errors = [relative_error(weight, text) for weight in weights]
        rows.append(
            {
                "format": text,
                "bits": round(find_format(text).bits_per_weight(), 3),
                "normal": round(errors[0], 2),
                "student": round(errors[1], 2),
                "reference": reference,
                "to reference": [
                    round(error / known, 3) for error, known in zip(errors, reference or (), strict=False)
                ],
            }
        )
    return rows


def relative_error(weight: np.ndarray, text: str) -> float:
    """The root mean square error of a weight stored so, relative to the weight's, in percent."""
    stored = quantize(jnp.asarray(weight), find_format(text))
    values = np.asarray(dequantize(stored, jnp.dtype(jnp.float32)), np.float64)
    return 100 * float(np.sqrt(((values - weight) ** 2).sum() / (weight.astype(np.float64) ** 2).sum()))


def table(rows: list[dict]) -> str:
    """The records in Markdown."""
    lines = [
        "| format | bits per weight | normal, % | reference | Student-t(4), % | reference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = row["reference"] or ("", "")
        cells = (f"`{row['format']}`", row["bits"], row["normal"], known[0], row["student"], known[1])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
