"""What each parameter is stored as and computed in."""

from bombus.policies.apply import apply_policy, decide_again
from bombus.policies.importers import from_first_match, from_tt_transformers, from_tt_xla
from bombus.policies.mixed_precision import Decision, MixedPrecision, as_precision, load_preset
from bombus.policies.policy import Policy, cast, create_policy, resolve_format, resolve_type
from bombus.policies.spelling import as_policy

__all__ = [
    "Decision",
    "MixedPrecision",
    "Policy",
    "apply_policy",
    "as_policy",
    "as_precision",
    "cast",
    "create_policy",
    "decide_again",
    "from_first_match",
    "from_tt_transformers",
    "from_tt_xla",
    "load_preset",
    "resolve_format",
    "resolve_type",
]
