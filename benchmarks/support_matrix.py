"""Two tables of README.md: what can be loaded and against what it was checked, and the storage formats.

`python benchmarks/support_matrix.py` prints them; `--write` puts them between their markers in README.md. They come
from the registry of architectures, the registry of formats, and tests/goldens/zoo/checked.json, which
tests/parity/test_parity_zoo.py writes while it compares with transformers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bombus.loader.layouts import COMPRESSED
from bombus.models.registry import HEADS, architectures
from bombus.policies.formats import FORMATS, Format
from bombus.policies.kinds import ROUNDING
from bombus.policies.options import choices

ROOT = Path(__file__).resolve().parents[1]
MATRIX, FORMATS_TABLE = "support-matrix", "formats"
CHECKED = ROOT / "tests" / "goldens" / "zoo" / "checked.json"
_COLUMNS = ("architecture", *(f"`{head}`" for head in HEADS), "stored as", "equal to", "real checkpoints")
# In the order in which a cell names them.
_KINDS = ("f32", "bf16", "block FP8", "MXFP4")


def support_matrix(checked: Path = CHECKED) -> str:
    """A Markdown table: a row for every architecture, a cell for every head with the types that were checked.

    A missing file checks nothing.
    """
    content = json.loads(checked.read_text(encoding="utf-8")) if checked.exists() else {"versions": {}, "checked": []}
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if name != "torch")
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for architecture in sorted(architectures(), key=lambda known: known.name):
        records = [record for record in content["checked"] if record["architecture"] == architecture.name]
        cells = [_cell(head, architecture.classes.values(), records) for head in HEADS]
        real = [f"{record['case']} (`{record['head']}`)" for record in records if record["real"]]
        seen = versions if records else "not checked"
        rows.append((architecture.name, *cells, f"all {len(FORMATS)}", seen, ", ".join(real)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(head: str, heads: Collection[str], records: list[dict[str, Any]]) -> str:
    if head not in heads:
        return ""
    found = {kind for record in records if record["head"] == head for kind in record["differences"]}
    return ", ".join(sorted(found, key=_KINDS.index)) or "not checked"


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
