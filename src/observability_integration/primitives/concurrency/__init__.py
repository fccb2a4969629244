"""Limits of concurrent calls, fixed or adaptive."""

from .limit import ConcurrencyLimit
from .permits import PermitRefused
from .primitive import ConcurrencyLimitPrimitive
from .queue import Priority

__all__ = [
    "ConcurrencyLimit",
    "ConcurrencyLimitPrimitive",
    "PermitRefused",
    "Priority",
]
