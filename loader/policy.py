"""Which policy a load uses: the one that is given, or, asked for with "auto", the first of four places that has one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bombus.loader.repository import Repository
from bombus.models.storage import is_weight
from bombus.policies import MixedPrecision, Policy, as_policy, as_precision, load_preset
from bombus.policies.files import PRESETS
from bombus.policies.formats import Format, find_format
from bombus.policies.mixed_precision import PolicyLike

AUTO = "auto"
POLICY_FILE = "bombus_policy.json"
# What `auto` takes where nobody has written a policy: it loses next to nothing.
_SHIPPED = "accuracy"


def find_policy(
    policy: PolicyLike, repository: Repository, config: Mapping[str, Any]
) -> tuple[MixedPrecision, str | None]:
    """(the rules, where they are from); None for where with rules that were given as they are.

    "auto" takes the repository's own bombus_policy.json, else MODEL.json in the user's folder of policies, else the
    preset "accuracy". A preset's name takes its override for this model, where there is one.
    Raises PolicyError for a policy or a file that is malformed.
    """
    names = _names(repository, config)
    if policy == AUTO:
        found = repository.find(POLICY_FILE) or _user_file(names)
        if found is not None:
            return as_precision(found), str(found)
        policy = _SHIPPED
    if isinstance(policy, str) and policy in PRESETS:
        return load_preset(policy, models=names)
    is_file = isinstance(policy, os.PathLike) or (isinstance(policy, str) and policy.endswith(".json"))
    return as_precision(policy), str(policy) if is_file else None


def user_folder() -> Path:
    """The user's folder of policies: `policies` in $BOMBUS_HOME, by default ~/.config/bombus."""
    home = os.environ.get("BOMBUS_HOME")
    return (Path(home) if home else Path.home() / ".config" / "bombus") / "policies"


def template(formats: Mapping[str, Format], stream: Format, default: Any = None) -> MixedPrecision:
    """A rule for every parameter by its path: the format it has, or `default` for weights.

    Loading with it as it is keeps every parameter's bits; it is meant to be edited.
    """
    wanted = None if default is None else find_format(default)
    rules: dict[str, Policy] = {}
    for path, found in formats.items():
        format = wanted if wanted is not None and is_weight(path) else found
        # A type that is not that of the residual stream is only stored; computing in it would change the model.
        rules[path] = as_policy(format) if format.is_low or format == stream else Policy(params=format)
    return MixedPrecision(rules)


def _names(repository: Repository, config: Mapping[str, Any]) -> list[str]:
    """What the model is called, the most particular first."""
    base = (repository.folder.resolve() if repository.folder else Path(repository.name)).name
    return [base, str(config.get("model_type"))]


def _user_file(names: list[str]) -> Path | None:
    folder = user_folder()
    # The names are somebody else's: only plain ones become file names.
    plain = [name for name in names if re.fullmatch(r"[\w.-]+", name)]
    files = (folder / f"{spelling}.json" for name in plain for spelling in dict.fromkeys((name, name.lower())))
    return next((file for file in files if file.is_file()), None)
