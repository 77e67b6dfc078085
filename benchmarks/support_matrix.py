"""The support matrix of README.md: what can be loaded, as what, and against what its outputs were checked.

`python benchmarks/support_matrix.py` prints it; `--write` puts it between the markers in README.md. It comes from the
registry of architectures, the registry of formats, and the goldens (outputs of transformers) in tests/goldens.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from bombus.models.registry import architectures
from bombus.policies.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- support-matrix:begin -->", "<!-- support-matrix:end -->"
_COLUMNS = ("architecture", "head", "class in config.json", "formats", "outputs equal those of")


def support_matrix(goldens: Path = ROOT / "tests" / "goldens") -> str:
    """A Markdown table with a row for every architecture and head. A missing folder of goldens checks nothing."""
    checked = _checked(goldens)
    formats = ", ".join(f"`{name}`" for name in FORMATS)
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for architecture in architectures():
        for name, head in architecture.classes.items():
            versions = ", ".join(sorted(checked[name])) or "not checked"
            rows.append((architecture.name, f"`{head}`", f"`{name}`", formats, versions))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_matrix(readme: str, matrix: str) -> str:
    """The text of README.md with `matrix` between its markers. Raises ValueError when they are not there once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{matrix}\n{END}{rest.split(END)[1]}"


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
    """Print the matrix, or write it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    if not parser.parse_args().write:
        print(support_matrix())
        return
    readme = ROOT / "README.md"
    readme.write_text(with_matrix(readme.read_text(encoding="utf-8"), support_matrix()), encoding="utf-8")


if __name__ == "__main__":
    main()
