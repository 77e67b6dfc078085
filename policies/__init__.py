"""What each parameter is stored as and computed in."""

from bombus.policies.apply import apply_policy
from bombus.policies.mixed_precision import Decision, MixedPrecision, as_policy, as_precision
from bombus.policies.policy import Policy, cast, create_policy, resolve_type

__all__ = [
    "Decision",
    "MixedPrecision",
    "Policy",
    "apply_policy",
    "as_policy",
    "as_precision",
    "cast",
    "create_policy",
    "resolve_type",
]
