"""The errors of measurements."""

from __future__ import annotations

from bombus.policies.errors import BombusError


class EvaluationError(BombusError):
    """A measurement cannot be made."""


class OutOfMemory(EvaluationError):
    """What was to be measured does not fit into memory."""
