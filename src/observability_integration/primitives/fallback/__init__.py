"""Failover from one target to the next."""

from .primitive import FallbackPrimitive

__all__ = [
    "FallbackPrimitive",
]
