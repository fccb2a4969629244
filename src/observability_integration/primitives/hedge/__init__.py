"""Hedges a slow call with a second one."""

from .primitive import HedgePrimitive

__all__ = [
    "HedgePrimitive",
]
