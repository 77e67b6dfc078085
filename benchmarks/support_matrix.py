"""Two tables of README.md: what can be loaded and against what it was checked, and the storage formats.

`python benchmarks/support_matrix.py` prints them; `--write` puts them between their markers in README.md. They come
from the registry of architectures, the registry of formats, and the goldens (outputs of transformers) in tests/goldens.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bombus.loader.layouts import COMPRESSED
from bombus.models.registry import architectures
from bombus.policies.formats import FORMATS, Format
from bombus.policies.kinds import ROUNDING
from bombus.policies.options import choices

ROOT = Path(__file__).resolve().parents[1]
MATRIX, FORMATS_TABLE = "support-matrix", "formats"
_COLUMNS = ("architecture", "head", "class in config.json", "formats", "outputs equal those of")


def support_matrix(goldens: Path = ROOT / "tests" / "goldens") -> str:
    """A Markdown table with a row for every architecture and head. A missing folder of goldens checks nothing."""
    checked = _checked(goldens)
    formats = f"all {len(FORMATS)}"
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for architecture in architectures():
        for name, head in architecture.classes.items():
            versions = ", ".join(sorted(checked[name])) or "not checked"
            rows.append((architecture.name, f"`{head}`", f"`{name}`", formats, versions))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def formats_table() -> str:
    """A Markdown table with a row for every storage format."""
    rows = [("format", "bits per weight", "options, the default first", "saved as"), ("---",) * 4]
    for name, kind in FORMATS.items():
        format = Format(name)
        options = [f"`{key}`: {_choices(name, key, default)}" for key, default in kind.options.items()]
        options += [f"`{ROUNDING}`: {', '.join(kind.rules)}"] if kind.rules else []
        saved = ["values"] if not format.is_low else ["compressed-tensors"] if name in COMPRESSED else ["own layout"]
        saved = ["block FP8", *saved] if name == "f8_e4m3fn" else saved
        rows.append(
            (
                f"`{name}`",
                f"{format.bits_per_weight():.3f}".rstrip("0").rstrip("."),
                "; ".join(options),
                ", ".join(saved),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _choices(name: str, key: str, default: Any) -> str:
    if key == "tile":
        return "128x128, any PxQ, channel, tensor"
    if key == "group":
        return "channel, any number" if default == 0 else f"{default}, any number, channel"
    if key == "zero_points":
        return "without, with"
    return ", ".join([default, *(choice for choice in choices(name, key) if choice != default)])


def with_table(readme: str, name: str, table: str) -> str:
    """The text of README.md with a table between its markers. Raises ValueError when they are not there once."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise ValueError(f"README.md must hold {begin} and {end} once each")
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def written(readme: str) -> str:
    """The text of README.md with both tables as they should be."""
    return with_table(with_table(readme, MATRIX, support_matrix()), FORMATS_TABLE, formats_table())


def _checked(goldens: Path) -> dict[str, set[str]]:
    """transformers' class -> the versions of transformers that its goldens were made with."""
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(goldens.glob("*.npz")):
        with np.load(path) as golden:
            config, made_with = json.loads(str(golden["config"])), str(golden["versions"])
        found = re.search(r"transformers \S+?(?=,|$)", made_with)
        if found is None:
            raise ValueError(f"{path} does not say which transformers made it: {made_with!r}")
        for name in config["architectures"]:
            versions[name].add(found[0])
    return versions


def main() -> None:
    """Print the tables, or write them into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    if not parser.parse_args().write:
        print(support_matrix(), formats_table(), sep="\n\n")
        return
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
